"""Addresses of MLflow's pages, and the views that some of them name.

A view (which columns, which charts in which order, which runs) does not fit in an address: MLflow's UI reads it from a
tag of the experiment, as it does for its own "Share" button. An address without a view says only which runs to show,
and the UI lays them out as it likes, but that needs no permission to write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

VIEW_TAG = "mlflow.sharedViewState."
"""A view's tag is called this, followed by the key that addresses name it by."""
MAX_VIEW = 5000
"""Longest value of an experiment's tag, in characters."""
ALL_PIPELINES = "tags.`gradus.pipeline` LIKE '%'"
"""Selects the runs of whole pipelines, and not of their stages."""
COLUMNS = {
    "metrics.`accuracy/end`": 110,
    "metrics.`accuracy/start`": 110,
    "tags.`gradus.stages`": 230,
    "params.`seed`": 70,
    "tags.`gradus.forked_from`": 160,
    "tags.`gradus.forked_at`": 140,
}
"""Column and its width in pixels, beside those that MLflow always shows: name, time and duration. One without any value
is left out."""
CURVES = (
    "reward/mean",
    "accuracy",
    "validation/accuracy",
    "stage/index",
    "policy/entropy",
    "policy/kl",
    "completion/length",
    "time/step",
)
"""The pipeline's own curves, in the order in which their charts are shown before all others."""
SMOOTHING = {"reward/mean": 70}
"""Per cent, as the UI's slider has it; the curve itself stays visible behind."""
BY_TIME, BY_NAME = "attributes.start_time", "tags.`mlflow.runName`"
"""Orders of runs. Only in the first does the UI fold stages below their pipeline."""


@dataclass(frozen=True)
class Page:
    """A page on runs in MLflow's UI."""

    experiments: tuple[str, ...]
    runs: str
    """Which runs are shown: an expression of MLflow's search."""
    order: str = BY_TIME
    charts: bool = False
    """Whether it shows charts, or the table of runs."""

    @property
    def view(self) -> dict[str, Any]:
        """The view as MLflow's UI would save it; with all of its fields, as some versions need them."""
        return {
            "searchFilter": self.runs,
            "orderByKey": self.order,
            "orderByAsc": self.order == BY_NAME,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": list(COLUMNS),
            "columnOrder": list(COLUMNS),
            "columnWidths": dict(COLUMNS),
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runsVisibilityMap": {},
            "runsHiddenMode": "SHOW_ALL" if self.charts else "FIRST_10_RUNS",
            "compareRunCharts": [_chart(metric) for metric in CURVES],
            "compareRunSections": [_section()],
            "isAccordionReordered": True,  # sections of further metrics come after ours, not in the alphabet
            "viewMaximized": False,
            "runListHidden": False,
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "groupBy": None,
            "groupsExpanded": {},
            "autoRefreshEnabled": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }

    @property
    def saved(self) -> str:
        """The view as the value of its tag, compressed as MLflow's UI compresses it."""
        text = json.dumps(self.view, separators=(",", ":")).encode()
        return f"deflate;{base64.b64encode(zlib.compress(text, 9)).decode()}"

    @property
    def key(self) -> str:
        """The key of the view: the same for the same view."""
        return f"gradus-{hashlib.sha256(self.saved.encode()).hexdigest()[:12]}"

    def address(self, server: str, with_view: bool = False) -> str:
        """The page's address on a server; ``with_view`` if the server has its view."""
        if len(self.experiments) == 1:
            place, options = f"/#/experiments/{self.experiments[0]}/runs", {}
        else:
            place, options = "/#/compare-experiments/s", {"experiments": json.dumps(self.experiments)}
        options |= {"compareRunsMode": "CHART"} if self.charts else {}
        if with_view:
            options["viewStateShareKey"] = self.key
        else:
            order = {"orderByKey": self.order, "orderByAsc": str(self.order == BY_NAME).lower()}
            options |= {"searchFilter": self.runs, **order}
        options["workflowType"] = "machine_learning"  # MLflow's other face, for GenAI apps, hides the curves
        return f"{server}{place}?{urlencode(options, quote_via=quote)}"


def list_page(experiment: str) -> Page:
    """The table of an experiment's pipelines, newest first."""
    return Page((experiment,), ALL_PIPELINES)


def charts_page(experiments: Sequence[str], run_ids: Sequence[str]) -> Page:
    """The charts of exactly these runs, of one experiment or several."""
    chosen = ", ".join(f"'{run_id}'" for run_id in run_ids)
    return Page(tuple(dict.fromkeys(experiments)), f"attributes.run_id IN ({chosen})", BY_NAME, charts=True)


def _section() -> dict[str, Any]:
    return {"uuid": "gradus", "name": "pipeline", "display": True, "isReordered": True, "deleted": False,
            "isGenerated": False}  # fmt: skip


def _chart(metric: str) -> dict[str, Any]:
    """A line chart of one metric over the step."""
    return {
        "type": "LINE",
        "uuid": f"gradus-{metric}",
        "metricSectionId": "gradus",
        "isGenerated": True,
        "deleted": False,
        "runsCountToCompare": 10,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": metric not in SMOOTHING,
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": SMOOTHING.get(metric, 0),
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "range": {},
    }
