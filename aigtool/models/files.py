"""Model files: one ``.safetensors`` that holds the weights and says what they are."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from aigtool.conversion import put_gates, set_policy, strip
from aigtool.errors import UserError
from aigtool.gates import Gate
from aigtool.graphs import NotResidualError
from aigtool.models.description import FORMAT_VERSION, Description
from aigtool.models.override import AS_IT_IS, InputOverride
from aigtool.models.zoo import create_network
from aigtool.output import replacing

_KEY = "aigtool"
_OTHER_FILES = {
    ".onnx": "an exported file, which predict alone takes",
    ".pt2": "an exported file, which torch.export.load opens",
    ".parquet": "a trace, which analyze takes",
}
_MADE_OF = {
    ".ckpt": "the best.safetensors beside it",
    **dict.fromkeys(
        (".pth", ".pt", ".th", ".tar", ".bin"),
        "what `aigtool convert NAME --weights FILE` makes of a checkpoint",
    ),
}
"""What to give in place of a file that is none of ours."""

DENSE_FILE = "dense.safetensors"
"""The network before gating, as a run folder keeps it beside the gated one."""


@dataclass(frozen=True)
class Model:
    """A network and what its model file says about it."""

    network: nn.Module
    description: Description

    def stripped(self) -> "Model":
        """Take the gates out, in place, and return the network before gating as a model."""
        return Model(strip(self.network), replace(self.description, gated_blocks={}, shortcuts={}))

    def overridden(self, by: InputOverride) -> "Model":
        """Return the same network for other images; whether it takes them is seen when it runs.

        Example:
            >>> model = Model(create_network("cifar_resnet20"), Description("cifar_resnet20", 10))
            >>> model.overridden(InputOverride(img_size=32)).description.input.size
            (3, 32, 32)
        """
        spec = self.description.input.overridden(by)
        return Model(self.network, replace(self.description, input=spec))


def save_model(path: str | Path, network: nn.Module, description: Description) -> None:
    """Write a model file, whole or not at all.

    Args:
        path: Where to; by custom ``NAME.safetensors``.
        network: Gated or not. What the description says of gates is read off it.
        description: The rest of what the file says.

    Raises:
        UserError: It cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "r20.safetensors"
        >>> from aigtool.conversion import convert
        >>> network = convert(create_network("cifar_resnet20"))
        >>> save_model(path, network, Description("cifar_resnet20", 10))
        >>> len(load_model(path).description.gated_blocks)
        9
    """
    described = description.with_gates_of(network)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with replacing(path) as temporary:
        metadata = {"format": "pt", _KEY: json.dumps(described.to_json())}
        try:
            safetensors.torch.save_file(state, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise UserError(f"model file {path} cannot be written ({error})") from error


def load_model(path: str | Path, network: nn.Module | None = None) -> Model:
    """Read a model file; nothing in it can run code.

    Args:
        path: What ``save_model`` wrote.
        network: For a network of the user's own class: a fresh one, before gating. Networks with
            a name are built by it.

    Returns:
        The network, on the CPU, in evaluation mode, and the description.

    Raises:
        UserError: The file is missing, is no model file, is of a newer format, or does not fit
            its network.
    """
    path = Path(path)
    metadata, state = _read(path)
    description = _description(path, metadata)
    if network is None:
        if not description.source:
            raise UserError(
                f"model file {path} holds a network of a class of its own: load it from Python, "
                "load_model(path, network)"
            )
        network = create_network(
            description.source, num_classes=description.num_classes, options=description.options
        )
    try:
        put_gates(network, _gates(description, state), description.shortcuts)
        network.load_state_dict(state)
    except (AttributeError, KeyError, NotResidualError, RuntimeError) as error:
        raise UserError(f"model file {path} does not fit its network: {error}") from error
    set_policy(network, description.policy)
    return Model(network.eval(), description)


def _gates(description: Description, state: dict[str, Tensor]) -> dict[str, Gate]:
    gates = {}
    for name, target in description.gated_blocks.items():
        width, channels = state[f"{name}.gate.fc1.weight"].shape
        gates[name] = Gate(channels, width)
        gates[name].target = target
    return gates


def load_reference(
    model: Model,
    path: str | Path,
    dense: str | Path | None = None,
    override: InputOverride = AS_IT_IS,
) -> tuple[str, Model]:
    """Find what to compare a gated network with.

    Args:
        model: The gated network.
        path: Its model file; a ``dense.safetensors`` beside it is the network before gating.
        dense: Another file of the network before gating.
        override: What was given for the gated one; the other sees the same images.

    Returns:
        ``"dense"`` and that network, or the given one if it has no gates; or, where there is no
        such file, ``"open"`` and the gated network itself, to be run with open gates.

    Raises:
        UserError: The file cannot be read, has gates, or is of other classes or another input.
    """
    beside = Path(path).parent / DENSE_FILE
    if dense is None and not model.description.gated_blocks:
        return "dense", model
    if dense is None and not beside.is_file():
        return "open", model
    reference = load_model(dense or beside).overridden(override)
    if reference.description.gated_blocks:
        raise UserError(
            f"dense network {dense or beside} has gates: expected the network before gating; "
            "choose another with --dense FILE"
        )
    check_comparable(model.description, reference.description, Path(dense or beside))
    return "dense", reference


def check_comparable(gated: Description, dense: Description, path: str | Path) -> None:
    """Refuse to compare networks of other classes, or of other images.

    Args:
        gated: Of the network that is compared.
        dense: Of what it is compared with.
        path: The file of that, or what it is for.

    Raises:
        UserError: They cannot be compared.
    """
    names = (gated.class_names, dense.class_names)
    if dense.num_classes != gated.num_classes or (None not in names and names[0] != names[1]):
        problem = "has other classes than the gated network;"
    elif dense.input.size != gated.input.size:
        problem = (
            f"takes images of {dense.input.size}, the gated network of {gated.input.size}; give "
            "both the same with --img-size, or"
        )
    else:
        return
    raise UserError(f"network {path} {problem} choose another to compare with")


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        if (best := path / "best.safetensors").is_file():
            raise UserError(f"model file {path}: it is a run folder; expected {best}")
        raise UserError(f"model file {path}: no such file; `aigtool convert` writes one")
    if path.suffix in _OTHER_FILES:
        raise UserError(
            f"model file {path}: it is {_OTHER_FILES[path.suffix]}; expected the .safetensors it "
            "was made of"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        expected = _MADE_OF.get(path.suffix, "what `aigtool convert` or `finetune` wrote")
        raise UserError(
            f"model file {path} is no .safetensors file, or a part of one ({error}); expected "
            f"{expected}"
        ) from error


def _description(path: Path, metadata: dict[str, str]) -> Description:
    if _KEY not in metadata:
        raise UserError(
            f"{path} holds weights but no description of a network: make a model file of it with "
            "`aigtool convert NAME --weights FILE --out MODEL`"
        )
    try:
        values: dict[str, Any] = json.loads(metadata[_KEY])
        version = values["format_version"]
        if version > FORMAT_VERSION:
            raise UserError(
                f"model file {path} has format {version}, this version reads up to "
                f"{FORMAT_VERSION}: update aigtool"
            )
        return Description.from_json(values)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"model file {path}: its description cannot be read ({error!r})") from error
