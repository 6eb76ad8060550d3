"""A name and weights to a model: the network before gating, and what is known of it."""

from dataclasses import replace
from pathlib import Path

from aigtool.errors import UserError
from aigtool.models.files import Model
from aigtool.models.weights import LoadedWeights, classifier_name, load_weights
from aigtool.models.zoo import count_classes, count_published_classes, create_network, describe


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    use_ema: bool = False,
    pretrained: bool = False,
    num_classes: int | None = None,
    class_names: str | Path | None = None,
) -> tuple[Model, LoadedWeights]:
    """Build a network by name with given, published or random weights.

    Args:
        name: As ``create_network`` takes it.
        weights: A checkpoint, as ``load_weights`` takes it.
        use_ema: Whether to take its averaged weights.
        pretrained: Whether to fetch the published weights.
        num_classes: Outputs of the classifier; one of another size than the weights' starts anew.
        class_names: A text file of names, one a line; by default those that the network was
            published with, unless its weights are random or its classifier is new.

    Returns:
        The network with its description, and where its weights came from.

    Raises:
        UserError: The network, its weights or the names cannot be had.

    Example:
        >>> model, loaded = create_model("cifar_resnet20")
        >>> model.description.num_classes, loaded.origin
        (10, 'random')
    """
    network = create_network(name, pretrained=pretrained, num_classes=num_classes)
    loaded = LoadedWeights("random")
    if pretrained:
        is_new = count_classes(network) != count_published_classes(network)
        loaded = LoadedWeights("published", fresh=classifier_name(network) if is_new else None)
    if weights is not None:
        loaded = load_weights(
            network, weights, use_ema=use_ema, new_classes=num_classes is not None
        )
    description = describe(name, network, pretrained=pretrained)
    if loaded.origin == "random" or loaded.fresh is not None:
        description = replace(description, class_names=None)
    if class_names is not None:
        names = read_class_names(class_names, description.num_classes)
        description = replace(description, class_names=names)
    return Model(network, description), loaded


def read_class_names(path: str | Path, count: int) -> tuple[str, ...]:
    """Read class names from a text file, one a line.

    Raises:
        UserError: The file is missing, or has another number of names than ``count``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"class names {path}: no such file; expected a text file, a name a line")
    lines = path.read_text(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != count:
        raise UserError(
            f"class names {path} has {len(set(names))} names, the network {count} outputs: "
            "expected a name for each, all different"
        )
    return names
