"""What takes the masks off a sum of masked values, from the secrets that were put together again.

Of a survivor that is its seed: the mask of its own comes off. Of a site that dealt and sent no
values it is its private key: the masks come off that the survivors share with it. The masks between
two survivors cancel out in the sum.
"""

from collections.abc import Collection, Mapping

from core.aggregation_messages import Advert
from privacy.secure_aggregation import keys
from privacy.secure_aggregation.context import AttemptContext
from privacy.secure_aggregation.masks import Sign, pair_sign


def unmasking(
    context: AttemptContext,
    adverts: Mapping[str, Advert],
    secrets: Mapping[str, bytes],
    survivors: Collection[str],
) -> list[tuple[bytes, Sign]]:
    """Keys and signs of the masks to add.

    Guarantees:
        Each secret is checked against its site's advert before anything follows from it.

    Args:
        context: The attempt.
        adverts: By site.
        secrets: Of each site that dealt (U2): a survivor's seed, and any other one's private key.
        survivors: Those whose values are in the sum (U3).

    Raises:
        CommitmentError: A secret is not the one that its site advertised.
    """
    digest, masks = context.digest(), list[tuple[bytes, Sign]]()
    for owner, secret in secrets.items():
        if owner in survivors:
            keys.check_seed(secret, adverts[owner].seed_commitment, digest, owner)
            masks.append((keys.self_mask_key(secret, digest, owner), -1))
        else:
            pair = keys.check_mask_key(secret, adverts[owner].mask_key, owner)
            for site in survivors:
                agreed = pair.agree(adverts[site].mask_key)
                key = keys.pair_mask_key(agreed, digest, owner, site)
                # The survivor did the opposite of what the lost site would have done.
                masks.append((key, pair_sign(owner, site)))
    return masks
