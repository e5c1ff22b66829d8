"""Checkpoints: a directory a step, whole only when its marker says so and every byte is as the marker says.

```
RUN/checkpoints/step_000000200/objective.safetensors   the objective's state_dict: encoder, heads, teacher, queues
                               optimizers.pt           by phase, the optimizer's state_dict and kind
                               COMMIT.json             written last: step, score, size and sha256 of the files
                               KEEP                    there if it was promoted: then it is never removed
```
"""

from pipeline.train.checkpoints.checkpoint import Checkpoint, checkpoint_of, checkpoints, newest_checkpoint
from pipeline.train.checkpoints.commit import MARKER, Commit, Damaged, keep
from pipeline.train.checkpoints.saving import CheckpointFailed, CheckpointWriter, Saved
from pipeline.train.checkpoints.writing import Superseded, save_checkpoint

__all__ = [
    "MARKER",
    "Checkpoint",
    "CheckpointFailed",
    "CheckpointWriter",
    "Commit",
    "Damaged",
    "Saved",
    "Superseded",
    "checkpoint_of",
    "checkpoints",
    "keep",
    "newest_checkpoint",
    "save_checkpoint",
]
