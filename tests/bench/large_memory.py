"""Steps with many action units: K=4,096 against K=7, growth from there to K=65,536, and the memory that takes."""

from functools import partial

from harness import Row, fresh_seed, in_process, main, resident_bytes, take_turns
from problems import AsWritten, check_against_as_written, check_against_reference, make_engine, make_step, our_step

SIZE = {"videos": 32, "snippets": 200, "width": 1024, "classes": 200}


def measure() -> list[Row]:
    seed = fresh_seed()
    check_many_units(seed, snippets=20, units=300)
    step = make_step(seed, **SIZE)
    engines = {units: make_engine(seed, SIZE["width"], SIZE["classes"], units=units) for units in (7, 4096, 16384)}
    best_s = take_turns(5, **{str(units): partial(our_step, engine, step) for units, engine in engines.items()})
    for units, seconds in best_s.items():
        print(f"K={int(units):>6,}: {seconds:7.3f} s a step, {1e6 * seconds / int(units):8.1f} us a unit")
    few, many, more = best_s["7"], best_s["4096"], best_s["16384"]
    del engines, step
    most = in_process("train", 65536, seed)
    print(f"K=65,536: {most['step_s']:7.3f} s a step, update included; {most['optimizer_bytes'] / 1e9:.2f} GB of "
          f"optimizer state, {most['bytes'] / 1e9:.2f} GB beyond it in the whole process")  # fmt: skip
    # Of what depends on K, per unit: at 65,536 units against 16,384.
    slope, steeper = (more - many) / (16384 - 4096), (most["step_s"] - more) / (65536 - 16384)
    growth, used_gb = "  time a unit, K=16,384 to 65,536 against 4,096 on", most["bytes"] / 1e9
    return [
        Row("step at K=4,096 against K=7", many / few, "<= 2.5", many, few, "s"),
        Row(growth, steeper / slope, "<= 1.2", 1e6 * steeper, 1e6 * slope, "us"),
        Row("  K=65,536: memory beyond the optimizer's state", used_gb, "<= 6", used_gb, 6, "GB"),
    ]


def check_many_units(seed: int, snippets: int, units: int) -> None:
    engine = make_engine(seed, 20, 6, units=units, bottleneck=8)
    step = make_step(seed, 3, snippets, 20, 6)
    check_against_reference(engine, step)
    check_against_as_written(engine, AsWritten(engine.network.networks["rgb"]), step)


def train(units: str, seed: str) -> dict[str, float]:
    """Four whole steps; the best time, and the most memory the process ever had, without the optimizer's state."""
    engine = make_engine(int(seed), SIZE["width"], SIZE["classes"], units=int(units))
    step = make_step(int(seed), **SIZE)

    def train_once() -> None:
        our_step(engine, step)
        engine.update(1e-4)

    best_s = take_turns(3, step=train_once)["step"]
    moments, _ = engine.trainer_state()
    optimizer_bytes = sum(tensor.numel() * tensor.element_size() for tensor in moments.values())
    return {"step_s": best_s, "optimizer_bytes": optimizer_bytes, "bytes": resident_bytes("VmHWM") - optimizer_bytes}


def check() -> None:
    check_many_units(fresh_seed(), snippets=7, units=100)


if __name__ == "__main__":
    main(measure, train=train)
