"""The order of the gallery: from a first fit to networks."""

ORDER = (
    "first_fit",
    "choose_n_nonzero",
    "l0_against_l1",
    "correlated_design",
    "gap_certificate",
    "genes",
    "groups_and_trees",
    "phase_transition",
    "compressed_sensing",
    "deconvolution",
    "change_points",
    "sparse_mlp",
    "two_of_four",
    "convex_relu",
)


class Order:
    """Sort key of a script."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> int:
        """Return the place of a script."""
        return ORDER.index(filename.removeprefix("plot_").removesuffix(".py"))
