"""How much CO2eq a kilowatt-hour costs, by country: CodeCarbon's tables."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def countries() -> Mapping[str, Any]:
    """CodeCarbon's table of countries, read without importing CodeCarbon (0.3 s); empty if a release moves the file."""
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "data" / "private_infra" / "global_energy_mix.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


# CodeCarbon's own, for runs without a country: IEA, Global Energy & CO2 Status Report 2019, the mean of 2018.
WORLD_AVERAGE = 475.0  # g CO2eq per kWh


def carbon_intensity(country_iso_code: str) -> tuple[float, str]:
    """Return the g CO2eq per kWh of a country's electricity and where the number is from; '' is the world average."""
    country = countries().get(country_iso_code)
    if country is None:
        return WORLD_AVERAGE, "world average of 2018 (IEA 2019, as in CodeCarbon)"
    return float(country["carbon_intensity"]), f"{country['country_name']} {country['year']} (CodeCarbon's table)"
