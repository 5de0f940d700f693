"""What a run costs in energy and CO2eq: measured while it trains, estimated before.

What lives here: the measurement (`measure`), the share of it that is a process's (`share`), what was written, summed
(`emissions`), the grams of a kilowatt-hour (`electricity`), and the data sheets of accelerators (`chips`), whose peaks
MFU needs as well.
What may come in: other meters, other tables.
What must not: anything that could stop a run."""

from jaxformer.footprint.chips import CHIPS, Chip, chip_named, peak
from jaxformer.footprint.electricity import carbon_intensity
from jaxformer.footprint.emissions import Emissions, Overlap, overlap, read_emissions
from jaxformer.footprint.measure import Footprint, FootprintConfig
from jaxformer.footprint.share import machine_name

__all__ = [
    "CHIPS",
    "Chip",
    "Emissions",
    "Footprint",
    "FootprintConfig",
    "Overlap",
    "carbon_intensity",
    "chip_named",
    "machine_name",
    "overlap",
    "peak",
    "read_emissions",
]
