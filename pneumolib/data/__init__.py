"""From files to batches: which images there are, who trains, what a network sees of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "drawing": ["draw_radiograph"],
        "synthetic": ["draw_dataset"],
        "manifest": ["Manifest", "read_manifest"],
        "split": ["SplitError", "split_external", "split_manifest", "without_shared"],
        "images": ["ImageSet", "load_image", "read_images", "take"],
        "familiarity": ["alarms"],
        "familiarity_fit": ["describe_images", "fit_familiarity"],
        "corruptions": ["corrupt", "corruption_samples"],
        "contrast": ["grey_distances", "histograms_of"],
        "augment": ["augment_batch"],
        "pipeline": ["eval_dataset", "steps_per_epoch", "train_dataset"],
    },
)
