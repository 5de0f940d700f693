"""The papers' tables of ablations, as data: `jaxformer reproduce` trains their rows and sets ours beside theirs."""
