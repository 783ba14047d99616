"""`python -m tests.runtime.equality`: docs/engines.md's table, engine x stage x precision x world size; minutes."""

import json
import tempfile
from pathlib import Path

from tests.launching import succeed, torchrun
from tests.runtime import engine_ranks

ROOT = Path(engine_ranks.__file__).parents[2]
CASES = [case for precision in ("fp32", "bf16", "fp16") for case in engine_ranks.cases(precision)]


def main() -> None:
    curves = {ranks: launch(ranks) for ranks in (1, 2, 3)}
    reference, size = curves[1]["ddp-0-fp32"], len(engine_ranks.WIDTHS)
    print("| engine | offload | precision | ranks | final loss | largest difference: loss | gradient norm |")
    print("|---|---|---|---|---|---|---|")
    for case in [*CASES, *engine_ranks.OFFLOADS]:
        name, stage, precision, *offload = case.split("-")
        engine = name if name == "ddp" else f"deepspeed, ZeRO {stage}"
        for ranks, found in curves.items():
            pairs = list(zip(found[case], reference, strict=True))
            loss = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours[:size], theirs[:size], strict=True))
            norm = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours[size:], theirs[size:], strict=True))
            final = sum(found[case][-1][:size])
            offloaded = offload[0] if offload else "none"
            print(f"| {engine} | {offloaded} | {precision} | {ranks} | {final:.6f} | {loss:.1e} | {norm:.1e} |")


def launch(ranks: int) -> dict[str, list[list[float]]]:
    with tempfile.TemporaryDirectory() as folder:
        cases = ",".join([*CASES, *engine_ranks.OFFLOADS])
        place = {"PYTHONPATH": str(ROOT)}
        succeed(torchrun(ranks, engine_ranks.__file__, folder, f"curves:{cases}", timeout_s=900, environment=place))
        curves: dict[str, list[list[float]]] = json.loads((Path(folder) / f"{ranks}.json").read_text())["curves"]
        return curves


if __name__ == "__main__":
    main()
