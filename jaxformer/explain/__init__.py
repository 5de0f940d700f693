"""What there is, shown to people: presets, objectives, and which goes with which.

What lives here: the catalogue of presets (`catalog`), the table of objectives and families (`compatibility`), examples
as training draws them (`examples`) and in words (`showing`).
What may come in: whatever helps to choose before a run.
What must not: anything that runs need, and any import here: the tables wait for nothing heavy."""
