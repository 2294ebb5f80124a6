"""Made-up runs of the study of overfitting, for tests of what is made of them."""

from picollm_core.overfit_runs import Arm


def result(seed: int, train, held_out, **more) -> dict:
    rows = [
        {"step": 10 * (i + 1), "epoch": i + 1, "train": t, "held_out": h, "validation": h, "test": h + 0.5}
        for i, (t, h) in enumerate(zip(train, held_out, strict=True))
    ]
    return {"rows": rows, "seed": seed, "seconds": 2.0} | more


def arm(name: str, train, held_out, seeds=5, spread=0.01, **more) -> Arm:
    wiggle = [spread * (seed - 2) for seed in range(seeds)]
    results = [
        result(s, [t - wiggle[s] for t in train], [h + wiggle[s] for h in held_out], **more) for s in range(seeds)
    ]
    return Arm(results, f"measurements/{name}.json")


def samples(distinct: float, novel: float, seeds=5, spread=0.01) -> Arm:
    def own(d: float) -> dict:
        return {"distinct": {"2": d}, "novel": {"5": novel}, "longest": 7, "tokens": 100}

    people = {"model": None, "people": own(0.7)}
    results = [{"seed": s, "samples": people | {"model": own(distinct + spread * (s - 2) ** 3)}} for s in range(seeds)]
    return Arm(results, f"measurements/{distinct}.json")
