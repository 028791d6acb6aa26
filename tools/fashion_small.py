"""Write the shipped data set fashion_small from Fashion-MNIST: `python -m tools.fashion_small`.

It reads `fashion_mnist.npz` in the data folder (MEMLENS_DATA) or downloads it. The images and
labels that it writes have the checksums in `memlens.data.imagesets.FASHION_SMALL_SPEC`.
"""

import numpy as np

from memlens.data import imagesets
from memlens.storage import store


def main() -> None:
    """Select the samples and write the file into the package."""
    path = store.data_dir() / "fashion_mnist.npz"
    whole = imagesets.read_npz(path) if path.exists() else imagesets.download("fashion_mnist", path)
    imagesets.check_images(whole, imagesets.SETS["fashion_mnist"], str(path))
    selected = imagesets.first_of_each_class(whole, imagesets.PER_CLASS)
    imagesets.check_images(selected, imagesets.FASHION_SMALL_SPEC, "the selection")
    np.savez_compressed(imagesets.FASHION_SMALL, **selected)
    print(f"{imagesets.FASHION_SMALL}: {imagesets.FASHION_SMALL.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
