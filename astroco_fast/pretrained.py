"""The methods of any encoder besides its call: build it from a preset, load it, save it, embed light curves with it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from astroco_fast import presets, released
from astroco_fast.card import model_card
from astroco_fast.checksums import MANIFEST, check_files, write_manifest
from astroco_fast.data.views import Views
from astroco_fast.errors import UserError
from astroco_fast.files import read_json, require_here, whole_file, write_text
from astroco_fast.hub import HUB, download, parse, upload
from astroco_fast.reference.config import ModelConfig
from astroco_fast.reference.encoder import Encoder
from astroco_fast.text import first_reason

if TYPE_CHECKING:
    from astroco_fast.data.columns import Columns

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
CONFIG_FORMAT = 1

Model = TypeVar("Model", bound="PretrainedEncoder")
T = TypeVar("T")


class PretrainedEncoder(Encoder):
    """An encoder that can be saved, loaded and used for embeddings. Its constructor takes its configuration.

    Attributes:
        config: the hyperparameters.
        views: the views of light curves that it was pretrained on, which decide the default parts of its embeddings.
        config_class: the type of the hyperparameters.
        paper: the paper that describes the architecture.
    """

    config: ModelConfig
    views: Views = "time"
    config_class: ClassVar[type[ModelConfig]]
    paper: ClassVar[str]

    @classmethod
    def from_preset(cls: type[Model], name: str, **overrides: Any) -> Model:
        """A freshly initialised model of a preset (`astroco_fast.presets.names()`), fields replaced by `overrides`.

        Raises:
            UserError: no such preset or field, a value out of range, or a preset of another architecture.
        """
        config = presets.configure(name, overrides)
        if not isinstance(config, cls.config_class):
            raise UserError(
                f"preset {name!r} is not an {cls.name}; build it with astroco_fast.registry.build({name!r})"
            )
        return cls(config)

    def embed(
        self,
        curves: Any,
        *,
        columns: "Columns | None" = None,
        band: str | None = None,
        min_points: int = 1,
        short: Literal["nan", "drop"] | None = None,
        windows: Literal["mean", "first", "last", "all"] = "mean",
        output: Literal["embedding", "sequence", "reconstruction"] = "embedding",
        views: Views | None = None,
        parts: Sequence[str] | None = None,
        precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
        batch_size: int = 256,
        progress: bool = False,
    ) -> Any:
        """One vector a light curve, or states or magnitudes of its points; see `astroco_fast.embedding.embed`."""
        from astroco_fast.embedding import embed

        return embed(
            self, curves, columns=columns, band=band, min_points=min_points, short=short, windows=windows,
            output=output, views=views, parts=parts, precision=precision, batch_size=batch_size, progress=progress,
        )  # fmt: skip

    def features(self) -> str:
        """The features that set this model apart from others of its architecture and size, for the model card."""
        raise NotImplementedError(f"{type(self).__name__} has no features()")

    def save_pretrained(self, folder: str | Path, *, notes: str = "", half: bool = False) -> None:
        """Write `config.json`, `model.safetensors`, a model card (`README.md`), and checksums (`manifest.json`).

        Args:
            folder: created if it does not exist; a model that was saved in it before is replaced.
            notes: Markdown for the card, for instance what the model was trained on.
            half: write the parameters in float16, at half the size; running statistics stay float32.

        Raises:
            UserError: files of these names in the folder are not those of a saved model, or it cannot be written.
        """
        folder = Path(folder)
        require_here(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_others(folder)
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        if half:
            weights.update({key: weights[key].half() for key, _ in self.named_parameters()})
        with whole_file(folder / WEIGHTS_FILE) as partial:
            save_file(weights, partial, metadata={"format": "pt"})
        views = {} if self.views == "time" else {"views": self.views}
        config = {"model": self.name, "format": CONFIG_FORMAT, **views, **self.config.to_dict()}
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        parameters = sum(p.numel() for p in self.parameters())
        card = model_card(self.name, self.paper, self.config, self.features(), parameters, notes)
        write_text(folder / CARD_FILE, card)
        write_manifest(folder, (CONFIG_FILE, WEIGHTS_FILE))

    def push_to_hub(
        self,
        repository: str,
        *,
        notes: str = "",
        metrics: Mapping[str, float] | None = None,
        dataset: str = "",
        message: str = "Publish a model of astroco_fast",
        private: bool = False,
        half: bool = False,
        token: str | None = None,
    ) -> str:
        """Publish the model on the Hugging Face Hub, as `save_pretrained` writes it.

        Args:
            repository: "name/repository", or "name/repository@revision" for a branch; created if it does not exist.
            notes: Markdown for the card, for instance what the model was trained on.
            metrics: figures for the card, by name, such as {"macro-F1, 100 labels a class": 0.847}.
            dataset: what the figures were measured on.
            message: the commit's.
            private: whether a new repository is to be private.
            half: as for `save_pretrained`.
            token: the Hub's; None: the one that `hf auth login` saved.

        Returns:
            The commit's address.

        Raises:
            UserError: it is no name of a repository, or the Hub refuses.
            MissingExtraError: huggingface-hub is not installed.
        """
        parse(repository)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, notes=notes, half=half)
            if metrics:
                parameters = sum(p.numel() for p in self.parameters())
                facts = (self.name, self.paper, self.config, self.features(), parameters, notes)
                write_text(Path(folder) / CARD_FILE, model_card(*facts, metrics=metrics, dataset=dataset))
            files = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, MANIFEST)
            return upload(Path(folder), repository, files, message, private, token)

    @classmethod
    def from_pretrained(cls: type[Model], source: str | Path) -> Model:
        """Load a model that `save_pretrained` wrote, in evaluation mode, on the CPU.

        Args:
            source: the name of a released model (`astroco models` lists them), a folder (a run's `checkpoints/best` is
                one), or a repository of the Hugging Face Hub: "hub:name/repository", "hub:name/repository@revision".

        Raises:
            UserError: there is no such folder, a file is missing or broken (or its checksum differs, where the folder
                has a manifest), the architecture is another one, or the weights do not fit the configuration or are not
                finite.
        """
        return read_saved(source, cls._read)

    @classmethod
    def _read(cls: type[Model], folder: Path) -> Model:
        """The model that is saved in a folder."""
        config, views = cls._saved_config(folder / CONFIG_FILE)
        weights = folder / WEIGHTS_FILE
        _verify(weights)
        if not weights.is_file():
            raise UserError(f"{weights}: no such file; save_pretrained writes it")
        try:
            _check_shapes(cls, config, weights)
            model = cls(config)
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{weights}: does not hold this model's weights: {first_reason(error)}") from error
        model.views = views
        for name, values in model.state_dict().items():
            if not values.isfinite().all():
                raise UserError(f"{weights}: {name} holds numbers that are not finite; give another model")
        return model.eval()

    @classmethod
    def _saved_config(cls, path: Path) -> tuple[ModelConfig, Views]:
        """The hyperparameters and views in a `config.json`."""
        values = read_config(path)
        name, version, views = values.pop("model", None), values.pop("format", None), values.pop("views", "time")
        if name != cls.name:
            raise UserError(
                f"{path}: not an {cls.name} configuration ('model' is {name!r}); astroco_fast.load takes all models"
            )
        if version != CONFIG_FORMAT:
            raise UserError(f"{path}: written by another version of astroco_fast; upgrade astroco_fast to read it")
        if views not in get_args(Views):
            raise UserError(f"{path}: 'views' is {views!r}; there are: {', '.join(get_args(Views))}")
        try:
            return cls.config_class.from_dict(values), views
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _check_shapes(model_class: Callable[[ModelConfig], Encoder], config: ModelConfig, weights: Path) -> None:
    """Compare the shapes of saved weights with those of a configuration, which may ask for any amount of memory.

    Raises:
        ValueError: they differ.
    """
    with safe_open(weights, framework="pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if config.layers > len(there):
        raise ValueError(f"{len(there)} tensors for {config.layers} layers")
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in model_class(config).state_dict().items()}
    for name in sorted({*there, *wanted}):
        if there.get(name) != wanted.get(name):
            raise ValueError(f"{name} has the shape {there.get(name)}, {wanted.get(name)} is needed")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a saved model's `config.json`, in which "model" names the architecture.

    Raises:
        UserError: the file is missing, is not a JSON object, or has changed since it was written (by its checksum).
    """
    _verify(path)
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder that save_pretrained wrote") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not the configuration of a model")
    return values


def _refuse_others(folder: Path) -> None:
    """Refuse to replace files that `save_pretrained` did not write."""
    names = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, MANIFEST)
    there = [name for name in names if (folder / name).exists()]
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        config = None
    if there and not (isinstance(config, dict) and {"model", "format"} <= config.keys()):
        raise UserError(f"{folder / there[0]}: not a file of a saved model, and would be replaced; give another folder")


def _verify(path: Path) -> None:
    """Compare a file of a run's checkpoint with its checksum there; folders without a manifest have none."""
    if (path.parent / MANIFEST).is_file():
        check_files(path.parent, (path.name,))


def read_saved(source: str | Path, read: Callable[[Path], T]) -> T:
    """Read a saved model.

    A link, such as `best` and `last` of a run, is followed once, since a run in progress may replace it between two
    files. If the run has also removed what it led to, it is followed again.

    Args:
        source: as for `PretrainedEncoder.from_pretrained`.
        read: reads the folder that it is given.
    """
    while True:
        folder = local_folder(source)
        try:
            return read(folder)
        except UserError:
            if local_folder(source) == folder:
                raise


def local_folder(source: str | Path) -> Path:
    """The folder itself, or the one that a link leads to; a released model's; or a snapshot of a Hub repository's
    configuration, weights and checksums.

    Raises:
        UserError: there is no such folder, no released model of that name, and no such repository.
    """
    path = Path(source)
    named = {model.name: model.folder for model in released.released()}
    if path.is_dir() and ((path / CONFIG_FILE).exists() or str(source) not in named):
        return path.resolve() if path.is_symlink() else path
    if str(source) in named:
        return named[str(source)]
    source = str(source)
    if not source.startswith(HUB):
        raise UserError(f"{source}: {_absent(source)}")
    return download(source, (CONFIG_FILE, WEIGHTS_FILE, MANIFEST))


def _absent(source: str) -> str:
    """What to say of a model that is neither a folder nor a released one."""
    hint = f"; a repository of the Hub is {HUB}{source}" if source.count("/") == 1 and source[0] not in "./~" else ""
    return f"no such folder, and no released model (astroco models lists those){hint}"


def require_local(source: str) -> None:
    """Refuse a model that is not here, unless the Hub is named, before anything else is done.

    Raises:
        UserError: there is no such folder, and no released model of that name.
    """
    if not (Path(source).is_dir() or source in released.names() or source.startswith(HUB)):
        raise UserError(f"{source}: {_absent(source)}")
