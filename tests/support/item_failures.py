"""The count of poison items that the background tasks of this process skipped."""

from graph.core.item_failures import ITEM_FAILURES


def count_item_failures(task: str) -> float:
    """Return how many items of the task were skipped, by all tests so far."""
    [metric] = ITEM_FAILURES.collect()
    return sum(
        sample.value
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["task"] == task
    )
