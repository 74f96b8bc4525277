"""What the notebooks share besides their pictures: comparisons, the corpus' roles, findings and exercises."""

import os

AS_WRITTEN = "NOTEBOOKS_AS_WRITTEN"  # set by build.py: nobody has changed a number


def same(ours, theirs, atol=1e-12):
    """Fails unless both agree. Float64 leaves about 1e-13 after some hundred additions of numbers of order 1."""
    import torch  # here, so that build.py need not wait for it

    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def apart(ours, theirs) -> float:
    """The relative error, to show how wrong a wrong way is."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def ids_and_roles(document, encode) -> list[tuple[int, str]]:
    """The token ids of a document of tiny/corpus.py, each with what it is in the document."""
    parts = [part for unit in document for part in ((unit.marks, "template"), (unit.word, unit.role))]
    return [(token, role) for text, role in parts for token in encode(text)]


def finding(claim: str, holds: bool):
    """Says so if what is claimed of the notebook's own numbers is not so with yours. Nothing fails then.

    With the notebook as it is written it has to be so: when build.py runs it, this is an assertion.
    """
    if not holds and os.environ.get(AS_WRITTEN):
        raise AssertionError(claim)
    if not holds:
        print("with the numbers of this notebook as it was written:", claim)


def try_it(test, attempt):
    """Runs a test on the reader's attempt at an exercise, and says how it went."""
    try:
        test(attempt)
    except Exception as problem:  # whatever an unfinished function does
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        print(f"red: {test.__name__} fails ({reason})")
    else:
        print(f"green: {test.__name__} passes")
