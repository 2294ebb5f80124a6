"""The claims are those of every source, each once, in words of our own."""

from collections import Counter

from picollm_core.claims import CLAIMS, SOURCES


def test_at_least_forty_claims_from_every_source():
    assert len(CLAIMS) >= 40
    assert set(Counter(claim.source for claim in CLAIMS.values())) == set(SOURCES)


def test_every_claim_is_told_once():
    assert all(name == claim.id for name, claim in CLAIMS.items())
    assert len({claim.claim for claim in CLAIMS.values()}) == len(CLAIMS)
    assert all(claim.claim and claim.where for claim in CLAIMS.values())
