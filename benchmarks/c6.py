"""C6: GPT-2 124M writes 64 tokens greedily after 64, for 1, 8 and 16 rows, against transformers."""

from writers import writing

CASES = tuple(
    writing(f"c6-{rows}", f"GPT-2 124M writes 64 tokens × {rows}", floor, system="gpt2", rows=rows, beams=1)
    for rows, floor in ((1, 1.3), (8, 1.15), (16, 1.15))
)
