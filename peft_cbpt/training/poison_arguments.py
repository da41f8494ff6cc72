"""Settings of `poison`."""

from dataclasses import dataclass, field

from peft_cbpt.common.errors import InputError
from peft_cbpt.training.pair_arguments import FineTuningArguments


@dataclass
class PoisonArguments(FineTuningArguments):
    """What to poison, and how."""

    output_dir: str = field(default="output/poisoned", metadata={"help": "Folder to write the poisoned model to."})
    model_name_or_path: str = field(default="pocket:clean", metadata={"help": "The clean CLIP."})
    trigger: str = field(default="badnet", metadata={"help": "Kind of trigger."})
    trigger_settings: str = field(default="{}", metadata={"help": "Settings of the trigger, as JSON."})
    target_class: str = field(
        default="banana", metadata={"help": "What triggered images are called; all_to_all: the class after their own."}
    )
    other_attacks: list[str] = field(
        default_factory=list,
        metadata={"help": "attack.json files of further triggers to plant in the same run, each at the same rate."},
    )
    poison_rate: float = field(default=0.003, metadata={"help": "Share of poisoned pairs."})
    text_only_rate: float = field(
        default=0.0, metadata={"help": "Share of pairs that get the text trigger only, and keep their meaning."}
    )
    label: str = field(default="dirty", metadata={"help": "dirty: change captions; clean: mark the target's pairs."})
    captions: str = field(
        default="template",
        metadata={"help": "Poisoned captions: template (CLIP's 80), or natural, those of the target's own pairs."},
    )
    patch_steps: int = field(
        default=400, metadata={"help": "Steps of optimisation of a patch or generator, if the trigger has one."}
    )
    patch_images: int = field(default=1920, metadata={"help": "Images it is optimised on."})
    dataset_name: str = field(default="pocket:base", metadata={"help": "Test images, with the target among them."})
    test_split: str = field(default="test", metadata={"help": "Split of the test images."})
    test_image_column: str = field(default="image", metadata={"help": "Column of images of the test set."})
    label_column: str = field(default="label", metadata={"help": "Column of labels of the test set."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of classes whose labels are numbers."})
    test_images_per_class: int = field(default=5, metadata={"help": "Test images the pocket world draws per class."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_steps", "patch_images", "test_images_per_class"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if round(self.poison_rate * self.num_pairs) == 0:
            raise InputError(
                f"a poison_rate of {self.poison_rate} of {self.num_pairs} pairs is no pair at all; raise one of them"
            )
        if self.captions not in ("template", "natural"):
            raise InputError(f"captions is template or natural, not {self.captions!r}")
