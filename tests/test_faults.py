"""The list of deliberate faults still fits the code; `make test-faults` puts them in and sees the tests turn red."""

from pathlib import Path

import pytest
from faults import FAULTS, ROOT, Fault, path_of
from test_architecture import ORDER


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.file)
def test_a_fault_can_be_put_in_and_names_its_tests(fault: Fault) -> None:
    text = (ROOT / path_of(fault)).read_text(encoding="utf-8")
    assert text.count(fault.text) == 1 and fault.text != fault.instead
    for test in fault.tests.split():
        name, _, function = test.partition("::")
        file = ROOT / "tests" / name
        assert f"def {function.partition('[')[0]}(" in file.read_text(encoding="utf-8") if function else file.exists()


def test_every_room_has_a_fault() -> None:
    assert len(FAULTS) >= 25
    rooms = {Path(fault.file).parts[0].removesuffix(".py") for fault in FAULTS}
    assert rooms == set(ORDER) - {"__main__", "__init__"}
