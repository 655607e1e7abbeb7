"""What an analysis found: a terminal table, `results.json` and a self-contained HTML page."""

from aniso.report._comparison import ComparisonReport
from aniso.report._conditions import Condition, failures
from aniso.report._distribution import distribution_of
from aniso.report._report import Report

__all__ = ["ComparisonReport", "Condition", "Report", "distribution_of", "failures"]
