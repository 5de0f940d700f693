"""The command line.

What lives here: the parser and its exit codes (`main`), and what each verb does, in a few lines (`verbs`).
What may come in: a new verb, its words, its help with an example.
What must not: anything that a user of the library would miss, and imports before they are needed: `--help` waits for
no JAX."""
