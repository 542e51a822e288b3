"""Reproduction of a paper's claim, as a task of the registry."""

from __future__ import annotations

from typing import Annotated, ClassVar

from unveil.tasks.fields import Name, info
from unveil.tasks.task import Task, TaskContext, TaskResult


class Reproduce(Task):
    """Reproduce a paper's claim as a small experiment with a computed verdict.

    Example: unveil reproduce ddim-steps --quick
    """

    name: ClassVar[str] = "reproduce"
    section: ClassVar[str] = "Evaluate"
    arguments: ClassVar[tuple[str, ...]] = ("claim",)
    common: ClassVar[tuple[str, ...]] = ("force",)
    out: ClassVar[str] = "claim"
    out_optional: ClassVar[bool] = True
    out_help: ClassVar[str] = "Output folder of the page and its numbers."
    makes: ClassVar[str] = "report"
    separate_process: ClassVar[bool] = True
    group: ClassVar[str] = "Claim"

    claim: Annotated[
        Name | None, info("Claim to reproduce; all are listed when left out.", title="Claim", metavar="CLAIM")
    ] = None
    quick: Annotated[bool, info("Run a smoke test of seconds that shows that everything works.")] = False

    def run(self, context: TaskContext) -> TaskResult:
        """Run the experiment, or list the claims."""
        from unveil.reproduce import all_claims, reproduce

        if self.claim is None:
            claims = {name: claim.claim for name, claim in all_claims().items()}
            width = max(map(len, claims))
            lines = (f"{name:<{width}}  {claim}" for name, claim in claims.items())
            return TaskResult({"claims": claims}, "\n".join(lines))
        out = context.output.path if context.output.chosen else None
        record = reproduce(self.claim, quick=self.quick, out=out, force=context.output.force, console=context.console)
        return TaskResult(record if context.console.as_json else {}, "")  # otherwise the verdict is printed already
