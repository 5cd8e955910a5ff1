"""What a report is of."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Tables and figures of records."""

    output: str = "results/report"
    """Folder for the page, the tables and the figures; an earlier report there is replaced."""
    separate: bool = False
    """Report records of one task that cannot be compared, each kind in a table of its own."""
    relative: tuple[str, str] = ("v-walt", "i-walt")
    """Backbone and baseline of the relative performance, 100 (p_V - p_I) / p_I; nothing where
    either is not there."""
    checkpoints: str = ""
    """CSV of what is known of checkpoints, with the columns `weights_hash`, `step`, `loss`, `fid`
    and `fvd`; beside it, a model's own model.json tells its step and loss."""
