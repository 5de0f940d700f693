"""The three Transformer families over one body of layers. Everything outside this package sees `Model` only."""
