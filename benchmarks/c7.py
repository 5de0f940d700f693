"""C7: T5-small writes 64 tokens with 4 beams about 64, for 1 and 4 rows, against transformers."""

from writers import writing

CASES = tuple(
    writing(f"c7-{rows}", f"T5-small writes 64 tokens × {rows}, 4 beams", floor, system="t5", rows=rows, beams=4)
    for rows, floor in ((1, 2.0), (4, 1.5))
)
