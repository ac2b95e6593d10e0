"""Nested complaints of the parser become the key and what is wrong with it."""

import pytest

from fewstep.training.messages import one_line

CALLABLE = "Type collections.abc.Callable[[int], x.Y] expects a function or a callable class: "
NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'x.Stage'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'x.Module':
        Parser key "autoencoder":
          {callable}{complaint}. Got value: Namespace(width='wide')
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {{'class_path': 'x.Module'}}"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Subcommand 'fit' does not accept option 'data.vocab_siz'", "unknown key data.vocab_siz"),
        (
            NESTED.format(callable=CALLABLE, complaint="Option 'widht' is not accepted"),
            "unknown key model.autoencoder.widht",
        ),
        (
            NESTED.format(
                callable=CALLABLE, complaint="Parser key \"width\":\n Expected a <class 'int'>. Got value: wide"
            ),
            "model.autoencoder.width: expected int, got wide",
        ),
        (
            "Does not validate against any of the Union subtypes\nErrors:\n - rate is -1: expected > 0\n"
            " - Expected a <class 'NoneType'>\nGiven value: Namespace()",
            "rate is -1: expected > 0",
        ),
        (
            'Parser key "trainer.precision":\n Errors:\n - Expected a typing.Literal[64, 32]\n'
            " - Expected a typing.Literal['bf16']\n - Expected a <class 'NoneType'>\n Given value: 17",
            "trainer.precision: expected one of [64, 32] or one of ['bf16'], got 17",
        ),
        ("something\n else entirely", "something"),
        ("Expected a path", "Expected a path"),
    ],
)
def test_the_key_and_the_complaint_are_what_is_left(message: str, expected: str) -> None:
    assert one_line(message) == expected
