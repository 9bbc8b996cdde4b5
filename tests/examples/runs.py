"""Whole runs of the training script: its command line, and the code of the model card it writes."""

import soundfile
from sounds import tone


def arguments(workspace, out, *more, model="ast", method="ipet", data="data"):
    """A command line for the model and the data set of these names in the folder `workspace`."""
    return [
        *("--method", method, "--model_name_or_path", str(workspace / model), "--data_dir", str(workspace / data)),
        *("--output_dir", str(out), "--num_train_epochs", "2", "--disable_tqdm", "True", "--use_cpu", "True"),
        *more,
    ]


def run_card(folder, monkeypatch, capsys):
    """Runs the code of the model card in `folder`. Returns what it prints, and its variables."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    soundfile.write(folder / "clip.wav", tone("low"), 16000)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    variables = {}
    exec(compile(code, "README.md", "exec"), variables)
    return capsys.readouterr().out.strip(), variables
