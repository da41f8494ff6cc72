"""One shot a class: no image can be held out to choose an anchor with, and the loop takes the solver's place."""

import json

from peft_cbpt.cli import main

OPTIONS = """
    --model_name_or_path pocket:badnet --dataset_name pocket:base --class_names banana dog pizza rocket --num_shots 1
    --test_images_per_class 2 --only prompts --use_cpu true --disable_tqdm true --save_strategy no
"""


def test_one_shot_a_class_takes_the_loop_from_noise(tmp_path, capsys):
    short = ["--num_train_epochs", "6", "--output_dir", str(tmp_path)]
    assert main(["purify", *OPTIONS.split(), *short]) == 0
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["outer_solver"] == "prompts" and settings["warmup_epochs"] == 5
    assert json.loads((tmp_path / "adapter_config.json").read_text())["context_init"] == "normal"
    assert main(["purify", *OPTIONS.split(), "--num_train_epochs", "5", "--output_dir", str(tmp_path / "short")]) == 2
    assert "takes outer_solver prompts: num_train_epochs 5 ends within the prompt warm-up" in capsys.readouterr().err
