"""Log odds told as the sum that they are, so that a reader can add them up and see which items moved them."""

from .view import Rival, Term


def odds_as_sum(rival: Rival, *, terms: int) -> str:
    """The log odds, the prior, and what experiments added: the last `terms` one by one, those before together."""
    early, late = rival.terms[:-terms], rival.terms[-terms:]
    parts = [f"prior {rival.prior:+.1f}"]
    if early:
        names = dict.fromkeys((early[0].experiment, early[-1].experiment))
        parts.append(f"{' to '.join(names)} {sum(term.log_odds for term in early):+.1f}")
    return f"log odds {rival.log_odds:+.1f} = {', '.join([*parts, *map(_term, late)])}"


def _term(term: Term) -> str:
    weight = f", weighed {term.weight:.2f}" if term.weight < 1 else ""
    return (
        f"{term.experiment} {term.log_odds:+.1f} (of {term.items}: {term.hits} hits, expected {term.expected:.1f}, "
        f"{term.against} {term.other_hits}, expected {term.other_expected:.1f}{weight})"
    )
