"""The benchmark's result as Markdown tables."""

# Made before the measurement: by how many times the rung beats the reference on a CPU (ResNet-18, one thread), or
# the milliseconds of an iteration of 128 images on an H200.
PREDICTED = {
    "cpu": {
        "reference": "1", "+ channels_last": "1.07", "+ folded copy, frozen, fused SGD": "1.23",
        "+ attack in bf16": "1.91", "+ update in bf16": "2.05", "+ torch.compile of the attack's copy": "2.05 to 2.4",
    },
    "cuda": {
        "reference, strict fp32": "none made", "reference": "25 to 40 ms", "+ channels_last": "22 to 35 ms",
        "+ bf16 by autocast": "22 to 30 ms", "+ folded bf16 copy for the attack": "14 to 20 ms",
        "+ CUDA graph of the whole step": "11 to 17 ms", "+ torch.compile of the attack's copy": "8 to 12 ms",
    },
}  # fmt: skip


def tables(found: dict) -> str:
    """The results of one device as Markdown."""
    lines = [
        "{device}, {cores} cores, {capability}, torch {torch}, Python {python}, {date}.".format(**found["gate"]),
        "",
        "| network, batch | threads | what | median | lowest to highest of n | bar | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in [*rows(found, "training"), *rows(found, "evaluation")]:
        bar, met = (f"{r['bar']:.2f}", yes(r)) if r["bar"] else ("none", "")
        lines.append(f"| {r['network']}, {r['batch']} | {r['threads']} | {r['what']} | {spread(r)} | {bar} | {met} |")
    lines += [
        "",
        "| rung, each on the one before | predicted | median | lowest to highest of n | ms |",
        "|---|---|---|---|---|",
    ]
    measured = {r["rung"]: r for r in rows(found, "training", "ladder")}
    for rung, prediction in PREDICTED[found["gate"]["kind"]].items():
        r = measured.get(rung)
        outcome = f"{spread(r)} | {1000 * r['seconds']:.0f}" if r else "not run | | "
        lines.append(f"| {rung} | {prediction} | {outcome} |")
    lines += ["", "| peak memory of a step's process | MiB | no more than the release |", "|---|---|---|"]
    lines += [f"| {m['step']} | {m['mib']:.0f} | {yes(m)} |" for m in rows(found, "memory")]
    lines += [
        "",
        "| batches as a share of the steps they feed | median | lowest to highest of n | under 5 % |",
        "|---|---|---|---|",
    ]
    for d in rows(found, "data_path"):
        span = f"{d['median']:.2%} | {d['min']:.2%} to {d['max']:.2%} of {d['rounds']}"
        lines.append(f"| {d['network']}, {d['batch']}, {d['augment']} | {span} | {yes(d)} |")
    if "roof" in found:
        lines += [
            "",
            "GFLOP/s of one core, fp32: " + ", ".join(f"{k} {v:.0f}" for k, v in found["roof"]["gflops"].items()),
        ]
    if "environments" in found:
        lines += [
            "",
            "| network | threads | variables | ms a step | gain | lowest to highest of n |",
            "|---|---|---|---|---|---|",
        ]
    for e in rows(found, "environments"):
        names = [f"{v}=PASSIVE" for v in e["variables"] if not v.startswith("MALLOC")]
        names += ["allocator"] * ("MALLOC_TOP_PAD_" in e["variables"])
        what = f"{e['network']} | {e['threads']} | {', '.join(names) or 'none'}"
        lines.append(f"| {what} | {1000 * e['seconds']:.1f} | {spread(e)} |")
    if "epoch" in found:
        lines += ["", f"An epoch of 50,000 images, with its batches: {found['epoch']['seconds']:.2f} s"]
    return "\n".join(lines)


def rows(found: dict, part: str, kind="rows") -> list[dict]:
    return found.get(part, {}).get(kind, [])


def yes(line: dict) -> str:
    return "yes" if line["met"] else "**no**"


def spread(r: dict) -> str:
    return f"{r['median']:.2f} | {r['min']:.2f} to {r['max']:.2f} of {r['rounds']}"
