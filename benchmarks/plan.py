"""Plan a large project: hours, storage, network and money, from the throughput of each part.

Run: python benchmarks/plan.py [--images 10000000] [--gpus 8 64 512] [--maps-per-second 30] ...

Prints Markdown tables. The defaults are those of docs/guides/ten-million-images.md, which says where they come from;
replace them by what `tagmask run --dry-run` estimates on your machines.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

GB, TB, HOUR = 1e9, 1e12, 3600
IMAGES_PER_GROUP, IMAGES_PER_SHARD = 50, 1000


@dataclass(frozen=True)
class Step:
    """A step of the project.

    Attributes:
        name: what is done.
        seconds: of one GPU, or of one core.
        on_gpu: which of the two.
        max_gpus: the largest number of GPUs whose machines share the work.
        gigabytes: read and written.
    """

    name: str
    seconds: float
    on_gpu: bool
    max_gpus: float
    gigabytes: float

    def hours(self, gpus: int, cores_per_gpu: int) -> float:
        """Return the hours on so many GPUs and the cores beside them."""
        used = min(gpus, self.max_gpus)
        return self.seconds / (used if self.on_gpu else used * cores_per_gpu) / HOUR


def steps(args: argparse.Namespace) -> list[Step]:
    """Return the steps of the long way: masks of all images from their tags, then a network and its masks."""
    n, anywhere = args.images, float("inf")
    image, maps, mask = args.image_kb / 1e6, args.maps_kb / 1e6, args.mask_kb / 1e6  # GB
    seen = args.trained_images * args.epochs
    crops = args.steps * args.batch_size
    return [
        Step("pack the images into shards", n * args.pack_seconds, False, 1, 2 * n * image),
        Step("verify the images", n * args.decode_seconds, False, 1, n * image),
        Step("train the classifier", seen / args.trained_per_second, True, 8, seen * image),
        Step("response maps", n / args.maps_per_second, True, anywhere, n * (image + maps)),
        Step("masks: threshold and dense CRF", n * args.crf_seconds, False, anywhere, n * (image + maps + mask)),
        Step("train the network", crops / args.trained_per_second, True, 8, crops * (image + mask)),
        Step("masks of the network", n / args.predicted_per_second, True, anywhere, n * (image + mask)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--cores-per-gpu", type=int, default=16)
    parser.add_argument("--image-kb", type=float, default=110, help="of an image file")
    parser.add_argument("--maps-kb", type=float, default=47, help="of the response maps of an image")
    parser.add_argument("--mask-kb", type=float, default=3, help="of a mask")
    parser.add_argument("--pack-seconds", type=float, default=0.0012, help="of a core, per image")
    parser.add_argument("--decode-seconds", type=float, default=0.004, help="of a core, per image")
    parser.add_argument("--crf-seconds", type=float, default=0.47, help="of a core, per image")
    parser.add_argument("--maps-per-second", type=float, default=30, help="images per GPU")
    parser.add_argument("--predicted-per-second", type=float, default=10, help="images per GPU")
    parser.add_argument("--trained-per-second", type=float, default=150, help="crops per GPU")
    parser.add_argument("--trained-images", type=int, default=200_000, help="images that the classifier learns from")
    parser.add_argument("--epochs", type=int, default=5, help="of the classifier")
    parser.add_argument("--steps", type=int, default=40_000, help="of the network")
    parser.add_argument("--batch-size", type=int, default=16, help="of the network")
    parser.add_argument("--dollars-per-gpu-hour", type=float, default=2.0, help="its share of the machine included")
    args = parser.parse_args()
    plan = steps(args)
    print("| step | work | " + " | ".join(f"{gpus} GPUs" for gpus in args.gpus) + " |")
    print("|---" * (2 + len(args.gpus)) + "|")
    for step in plan:
        work = f"{step.seconds / HOUR:,.0f} {'GPU' if step.on_gpu else 'core'} hours"
        hours = [f"{step.hours(gpus, args.cores_per_gpu):,.1f} h" for gpus in args.gpus]
        print(f"| {step.name} | {work} | " + " | ".join(hours) + " |")
    totals = [sum(step.hours(gpus, args.cores_per_gpu) for step in plan) for gpus in args.gpus]
    print("| **in all** | | " + " | ".join(f"**{hours:,.0f} h**" for hours in totals) + " |")
    busy = [sum(min(gpus, step.max_gpus) * step.hours(gpus, args.cores_per_gpu) for step in plan) for gpus in args.gpus]
    print("| money | | " + " | ".join(f"${hours * args.dollars_per_gpu_hour:,.0f}" for hours in busy) + " |")
    shared = [step for step in plan if step.max_gpus > max(args.gpus)]
    rates = [max(s.gigabytes / s.hours(gpus, args.cores_per_gpu) / HOUR for s in shared) for gpus in args.gpus]
    print("| network, at most | | " + " | ".join(f"{rate:,.2f} GB/s" for rate in rates) + " |")
    n = args.images
    print("\n| what | files | shards | size |\n|---|---|---|---|")
    for name, kb in (("images", args.image_kb), ("response maps", args.maps_kb), ("masks", args.mask_kb)):
        print(f"| {name} | {n:,} | {n / IMAGES_PER_SHARD:,.0f} | {n * kb * 1000 / TB:,.2f} TB |")
    print(
        f"\nrequests per pass over the images: {n:,} for files, {n / IMAGES_PER_GROUP + 2 * n / IMAGES_PER_SHARD:,.0f}"
    )


if __name__ == "__main__":
    main()
