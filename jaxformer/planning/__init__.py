"""What a run will need, before it touches an accelerator.

What lives here: parameters, FLOPs, bytes per device, hours, energy and CO2eq of a config (`plan`); bytes of the state
exactly (`memory`), of activations by walking the traced step (`activations`); placements that fit (`fit`), ranked by
what devices exchange (`network`).
What may come in: whatever can be said of a run without running it.
What must not: measurements."""

from jaxformer.planning.plan import Work, num_parameters, work_of

__all__ = ["Work", "num_parameters", "work_of"]
