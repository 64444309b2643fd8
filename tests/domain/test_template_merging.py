"""Templates that say the same are one, and those that only look alike are not."""

import pytest

from domain.template_merging import canonical_texts


@pytest.mark.parametrize(
    ("texts", "canonical"),
    [
        (["door left opened", "door <*> opened"], {"door left opened": "door <*> opened"}),
        (["a b c d", "a b c <*>", "a b <*> <*>"], {"a b c d": "a b <*> <*>", "a b c <*>": "a b <*> <*>"}),
        (["a b c", "<*> <*> <*>"], {}),
        (["a b c", "<*> b <*>"], {}),
        (["a <*>", "a b c"], {}),
        (["a <*> c", "a b <*>"], {}),
        (["a  b", "a b"], {"a b": "a  b"}),
        (["<*>", "x"], {}),
        (
            ["login user=<*> from <*>", "login user=root from <*>"],
            {"login user=root from <*>": "login user=<*> from <*>"},
        ),
        (["a=<*>,b=<*>", "a=1,b=<*>", "a=1,c=<*>"], {"a=1,b=<*>": "a=<*>,b=<*>"}),
    ],
)
def test_the_most_general_template_that_keeps_half_of_the_words_stands_for_the_others(
    texts: list[str], canonical: dict[str, str]
) -> None:
    assert canonical_texts(texts) == {text: canonical.get(text, text) for text in texts}
    assert canonical_texts(texts[::-1]) == canonical_texts(texts)


def test_templates_made_to_have_many_ways_take_no_longer() -> None:
    tokens = [f"{n:010b}".replace("0", "w ").replace("1", "<*> ").strip() for n in range(2**10)]
    assert len(canonical_texts(tokens)) == 2**10
