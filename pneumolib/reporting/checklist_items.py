"""What CLAIM and TRIPOD+AI ask for, item by item, in words of our own; numbers are theirs.

CLAIM: Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM), 2024 Update, Radiology: Artificial
Intelligence 2024;6(4):e240300. TRIPOD+AI: Collins et al., BMJ 2024;385:e078378. Items that ask for the same share a row.
"""

from dataclasses import dataclass

CLAIM_ITEMS = range(1, 45)
# Main item to its sub-items; one without has none.
TRIPOD_ITEMS = {
    str(n): letters
    for n, letters in zip(
        range(1, 28),
        ["", "", "abc", "", "ab", "abc", "", "abc", "abc", "", "", "abcdefg", *[""] * 5, "abcdef", "", "abc", "", "", "ab",
         "", "", "", "abc"],
        strict=True,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        key: names its answer and its place on the page.
        words: what is asked, in our words.
        claim: numbers of CLAIM 2024.
        tripod: numbers of TRIPOD+AI, such as 12c.
    """

    key: str
    words: str
    claim: tuple[int, ...] = ()
    tripod: tuple[str, ...] = ()


SECTIONS: dict[str, list[Item]] = {
    "Title, abstract, introduction": [
        Item("title", "A title that names the kind of AI, the patients and what is predicted", (1,), ("1",)),
        Item("abstract", "An abstract with design, methods, results and conclusions", (2,), ("2",)),
        Item("background", "The clinical question, why a model, and which there are already", (3,), ("3a",)),
        Item("use", "Whom the model is for, and where in care it would stand", (3,), ("3b",)),
        Item("inequalities", "Known inequalities of health between groups of people", (), ("3c",)),
        Item("aims", "Aims and hypotheses; whether a model is made, tested, or both", (4,), ("4",)),
    ],
    "Design and data": [
        Item("design", "Looking back at data that existed, or collecting them for the study", (5,)),
        Item("goal", "What kind of study it is", (6,)),
        Item("source", "Where the data come from, and whom they stand for", (7,), ("5a",)),
        Item("dates", "When patients were included", (), ("5b",)),
        Item("setting", "Kind, number and place of hospitals", (), ("6a",)),
        Item("eligibility", "Who and what was included and excluded", (8,), ("6b",)),
        Item("treatment", "Treatments that patients had", (), ("6c",)),
        Item("preparation", "What is done to an image before the network sees it", (9,), ("7", "12b")),
        Item("subsets", "Which part of the data or of an image was used", (10,)),
        Item("names", "How names and other identifiers were removed", (11,)),
        Item("missing", "What was done about missing or unusable data", (12,), ("11",)),
        Item("acquisition", "How the images were taken", (13,)),
        Item("predictors", "Which predictors there are, and how they were chosen", (), ("9a",)),
        Item("measured", "How and when predictors were measured, and by whom", (), ("9b", "9c")),
    ],
    "Reference standard": [
        Item("outcome", "What counts as pneumonia, and how that was found", (14,), ("8a",)),
        Item("why_outcome", "Why this reference standard", (15,), ("8a",)),
        Item("annotators", "Who labelled, and with which training", (16,), ("8b",)),
        Item("test_labels", "How the test images were labelled", (17,)),
        Item("blinding", "What those who labelled did not know", (), ("8c",)),
        Item("agreement", "How far those who labelled agree with themselves and each other", (18,)),
    ],
    "Parts of the data": [
        Item("parts", "How images were dealt to training, validation and test", (19,), ("12a",)),
        Item("disjoint", "What never stands in two parts", (20,)),
        Item("size", "How many images were wanted, and why", (21,), ("10",)),
        Item("differences", "How the test images differ from those the model was made from", (), ("16", "20c")),
    ],
    "Model and training": [
        Item("network", "The network: input, layers, output", (22,), ("12c",)),
        Item("software", "Software and its versions", (23,)),
        Item("start", "What the weights start from", (24,)),
        Item("training", "How it was trained: optimiser, rate, augmentation, epochs", (25,), ("12c",)),
        Item("balance", "What was done about unequal classes", (), ("13",)),
        Item("selection", "How the final weights and the best run were chosen", (26,), ("12c",)),
        Item("ensemble", "Whether several models were combined", (27,)),
        Item("output", "What the model puts out, and how a threshold makes a call of it", (22,), ("15",)),
    ],
    "How it was evaluated": [
        Item("metrics", "Which measures and plots, and why", (28,), ("12e",)),
        Item("predicting", "How predictions were computed", (), ("12g",)),
        Item("uncertainty", "How uncertainty and significance were judged", (29,)),
        Item("clusters", "How differences between hospitals were handled, and what they were", (), ("12d", "23b")),
        Item("robustness", "Whether figures hold when images or the sample change", (30,)),
        Item("seeds", "Whether figures hold when the training is repeated", (30,)),
        Item("explanation", "Where the network looks, and how that was checked", (31,)),
        Item("internal", "Test on data of the same source", (32,)),
        Item("external", "Test on data from elsewhere", (33,)),
        Item("fairness", "What was done about fairness", (), ("14",)),
        Item("registration", "Registration of the trial or study", (34,), ("18d",)),
        Item("ethics", "Ethics committee and consent", (), ("17",)),
    ],
    "Results": [
        Item("flow", "How many were included and left out", (35,), ("20a",)),
        Item("people", "Age, sex and illness of the patients in each part", (36,), ("20b",)),
        Item("numbers", "How many images and how many with pneumonia in each analysis", (), ("21",)),
        Item("performance", "Performance with its uncertainty", (37,), ("23a",)),
        Item("accuracy", "Diagnostic accuracy and its precision at the threshold", (38,), ("23a",)),
        Item("subgroups", "Performance in parts of the test images", (37,), ("23a",)),
        Item("calibration", "Whether probabilities mean what they say", (37,), ("12e", "23a")),
        Item("updating", "Changes to the model after its test, and what they gave", (), ("12f", "24")),
        Item("failures", "What the wrong calls look like", (39,)),
    ],
    "Discussion": [
        Item("interpretation", "What the results mean beside the aims and other studies", (), ("25",)),
        Item("limitations", "Limits of the study", (40,), ("26",)),
        Item("practice", "What it means for practice", (41,)),
        Item("poor_images", "What happens with poor or missing images in use", (), ("27a",)),
        Item("users", "What users have to do and know", (), ("27b",)),
        Item("next", "What should be studied next", (), ("27c",)),
    ],
    "Other information": [
        Item("protocol", "Where the full protocol is", (42,), ("18c",)),
        Item("model_file", "The model itself, so that others can use and test it", (43,), ("22",)),
        Item("data_sharing", "Where the data are", (43,), ("18e",)),
        Item("code_sharing", "Where the code is", (43,), ("18f",)),
        Item("funding", "Who paid, and what they decided", (44,), ("18a",)),
        Item("conflicts", "Conflicts of interest", (), ("18b",)),
        Item("public", "What patients and public took part in", (), ("19",)),
    ],
}
