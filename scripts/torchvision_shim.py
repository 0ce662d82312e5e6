"""Make ``import torchvision`` work beside a PyTorch that its compiled part was not built for.

vLLM's CPU build runs on CPU PyTorch, but where no CPU torchvision can be had pip brings the CUDA one. Its
Python parts are all that the image processors of ``transformers`` need, yet the import stops, because it attaches fake
kernels to operators that only the compiled part declares. Declaring these operators first is enough.

This must happen in every process, also in those that vLLM starts before it loads plugins, so set-up puts a copy of this
file into the environment's site-packages, beside a ``.pth`` file that calls :func:`activate` when the interpreter
starts. For that reason this module imports nothing heavy and never raises while it is activated. Where torchvision's
compiled part loads, nothing is declared. With PyTorch's own index within reach it always does.

``scripts/setup_env.py`` runs ``torchvision_shim.py --install`` with the environment's interpreter. No distribution of
vllm-prune contains this file.
"""

import sys

TYPE_CHECKING = False  # `typing` itself would cost a millisecond at every interpreter start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PTH_NAME = "vllm_prune_torchvision.pth"
MODULE_NAME = "vllm_prune_torchvision_shim"
# One line, because `site` executes a .pth line by line; guarded, because an error here would be printed at every start.
PTH_LINE = (
    'import sys; exec("try:\\n'
    f"    from {MODULE_NAME} import activate\\n"
    "    activate()\\n"
    'except Exception:\\n    pass")\n'
)
# The operators that torchvision 0.21 to 0.28 gives a fake kernel at import. The others it looks up before use.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_fragments: "list[Any]" = []  # a Library takes its declarations back when it is collected


class TorchvisionFinder:
    """Meta-path finder that reacts to ``torchvision`` alone and declares its operators right before it runs."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return torchvision's own spec with a loader that calls :func:`declare_missing` first."""
        if fullname != "torchvision":
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                _declare_before_exec(spec)
                return spec
        return None


def activate() -> None:
    """Put the finder in front of the others, once per process."""
    if not any(type(finder).__name__ == TorchvisionFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def _declare_before_exec(spec: "ModuleSpec") -> None:
    """Hook the loader's ``exec_module``; ``find_spec`` alone must not import torch, as many only ask for the spec."""
    loader: Any = spec.loader
    if loader is None or not hasattr(loader, "exec_module"):
        return
    original = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        """Declare, then run the module as it would have run."""
        from contextlib import suppress

        with suppress(Exception):  # torchvision's own error tells more than ours would
            declare_missing(list(spec.submodule_search_locations or ()))
        original(module)

    loader.exec_module = exec_module


def declare_missing(locations: "list[str]") -> "list[str]":
    """Declare the operators that no compiled part supplies and return their names (empty: it loaded)."""
    import torch

    if _compiled_part_loads(locations):
        return []
    missing = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(SCHEMAS[name])
        _fragments.append(library)
    return missing


def _compiled_part_loads(locations: "list[str]") -> bool:
    """Try what torchvision itself is about to do; loading a library twice costs nothing."""
    from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder

    import torch

    for location in locations:
        spec = FileFinder(location, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("_C")
        if spec is None or spec.origin is None:
            continue
        try:
            torch.ops.load_library(spec.origin)
        except (ImportError, OSError):
            return False
        return True
    return False


def install(site_packages: str) -> bool:
    """Write the ``.pth`` file and a copy of this one; False when both are there already with the same content."""
    from pathlib import Path

    contents = {f"{MODULE_NAME}.py": Path(__file__).read_text(encoding="utf-8"), PTH_NAME: PTH_LINE}
    changed = False
    for name, content in contents.items():
        target = Path(site_packages) / name
        if not (target.is_file() and target.read_text(encoding="utf-8") == content):
            target.write_text(content, encoding="utf-8")
            changed = True
    return changed


def uninstall(site_packages: str) -> bool:
    """Remove what :func:`install` wrote; False when there is no ``.pth`` file."""
    from pathlib import Path

    pth = Path(site_packages) / PTH_NAME
    present = pth.is_file()
    pth.unlink(missing_ok=True)
    (Path(site_packages) / f"{MODULE_NAME}.py").unlink(missing_ok=True)
    return present


def main(argv: "list[str] | None" = None) -> int:
    """Install or remove the import hook of this interpreter's site-packages."""
    import argparse
    import sysconfig

    parser = argparse.ArgumentParser(description=main.__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--install", action="store_true", help="write the .pth file and what it imports")
    action.add_argument("--uninstall", action="store_true", help="remove both")
    parser.add_argument("--site-packages", default=sysconfig.get_path("purelib"), help="where (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.install:
        print(f"{PTH_NAME}: {'written' if install(options.site_packages) else 'already in place'}")
    else:
        print(f"{PTH_NAME}: {'removed' if uninstall(options.site_packages) else 'was not there'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
