import subprocess
import sys


def test_without_inspect_ai_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['inspect_ai'] = None\n"
        "from spot.errors import plain_errors\n"
        "with plain_errors():\n"
        "    import spot.evaluate.inspect_log"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: inspect_ai is missing; pip install 'spot-posttraining[inspect]'\n"
