"""The words of a rule's resources.env."""

from pipeline.workflow.variables import Variable, parse_variables


def test_a_question_mark_says_that_a_variable_is_not_needed() -> None:
    assert parse_variables(" IMAGENET_DIR TORCH_HOME?  ") == [
        Variable("IMAGENET_DIR", True),
        Variable("TORCH_HOME", False),
    ]
    assert parse_variables("") == []
