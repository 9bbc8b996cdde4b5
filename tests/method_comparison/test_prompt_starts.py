"""The table of what prompts do to the bundled encoder before any training."""

import prompt_starts


def test_random_prompts_disturb_and_tokens_do_not(capsys):
    changes = prompt_starts.main()
    assert changes["Xavier uniform"] > 1 > changes["Xavier uniform / 100"] > 0.5
    assert 0 < changes["tokens of silence"] < 0.05 and 0 < changes["tokens of other clips"] < 0.15
    printed = capsys.readouterr().out
    assert all(f"| {name} | {100 * value:.1f} |" in printed for name, value in changes.items())
