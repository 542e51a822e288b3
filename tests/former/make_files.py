"""Makes `files/` anew. Run it with the code of commit ae36fbe only; it is kept as the record of how they were made.

    git checkout ae36fbe, with tests/former beside it; python -m tests.former.make_files

It is no test and has no reader: after that commit the commands, options and modules that it names are called otherwise.
"""

from __future__ import annotations

import os
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.former import make_images, make_models, make_outputs, make_reports, make_service
from tests.former.command import FILES

STEPS = {
    "models": (make_models.make_models, make_models.make_stopped_runs),
    "images": (make_images.make_inputs, make_images.make_images),
    "recipes": (make_reports.make_recipes,),
    "reports": (make_reports.make_reports, make_reports.make_studies),
    "service": (make_service.make_service,),
    "outputs": (make_models.tidy, make_outputs.make_outputs),
}


def main(names: list[str]) -> None:
    """Everything, or the steps of these names."""
    torch.set_num_threads(1)
    if not names:
        shutil.rmtree(FILES, ignore_errors=True)
        FILES.mkdir()
    for name in names or STEPS:
        for step in STEPS[name]:
            print(step.__name__, flush=True)
            step()


if __name__ == "__main__":
    main(sys.argv[1:])
