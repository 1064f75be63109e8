"""`LayerWeightedRSA`: the RDMs of layers, weighted; the simple baseline of reweighting."""

from __future__ import annotations

from featpipe.rsa.reweighted._feature_reweighted import ALPHAS, FeatureReweightedRSA


class LayerWeightedRSA(FeatureReweightedRSA):
    """Predict dissimilarities as a weighted sum of the RDMs of layers, 1 - Pearson r of their activations.

    The same fit as `FeatureReweightedRSA` with one predictor a layer: few enough weights to look at.

    Parameters
    ----------
    signed : bool
        Weights of either sign; by default none is negative, so that the prediction is a mean of RDMs.
    form : {"correlation", "squared"}
        1 - r, or the mean squared difference.
    layers, normalisation, alphas, cv, repeats, train_on, select_on, floor, random_state
        As in `FeatureReweightedRSA`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_layers,)
    layers_ : list of str
    intercept_, alpha_, cv_scores_, training_ids_
        As in `FeatureReweightedRSA`.

    References
    ----------
    Jozwik, Kriegeskorte & Mur (2016), Visual features as stepping stones toward semantics, Neuropsychologia 83.
    Kaniuth & Hebart (2022), NeuroImage 257, 119294, section 2.
    """

    def __init__(
        self,
        signed=False,
        form="correlation",
        *,
        layers=None,
        normalisation="rank",
        alphas=ALPHAS,
        cv=4,
        repeats=3,
        train_on=None,
        select_on=None,
        floor=0.1,
        random_state=0,
    ):
        super().__init__(
            "layer",
            form,
            signed=signed,
            layers=layers,
            normalisation=normalisation,
            alphas=alphas,
            cv=cv,
            repeats=repeats,
            train_on=train_on,
            select_on=select_on,
            floor=floor,
            random_state=random_state,
        )
