"""Source -> documents -> token store -> row index -> objective or task -> batch."""
