"""Why tests that LoRA passes cannot apply to the methods of this package."""

import re


# By reason, what the test's name or its message has in it.
CANNOT_APPLY = {
    "Merging: prompts and non-linear blocks are not a change of weights, so `merge_adapter` and `merge_and_unload` refuse": (
        "cannot be merged into the base model|test_merge_|test_safe_merge|test_model_merged_adapters_irregular"
    ),
    "Weighted sums of adapters: the same": "cannot be averaged into one|mixed_modules_to_save_merging_adapters",
    "Arguments that LoRA alone has (`bias`, `lora_bias`, `target_modules`, `layers_pattern`)": (
        "got an unexpected keyword argument|does not support the 'bias' argument|has no attribute 'target_parameters'"
    ),
    "`PeftMixedModel` takes a fixed list of PEFT's own types": "PeftMixedModel|mixed models",
    "Task types of text models: the audio model's own head is trained": "`task_type` must be None",
    "The test asks for LoRA's own names (`lora.Linear`, `LoraModel`, keys with `lora`)": (
        "module_type_small|adapter_model_type|peft_types|lora_embedding_A|test_get_peft_model_state_dict |"
        "low_cpu_mem_usage_works .*set\\(\\) == {device|custom_peft_type_does_not_raise"
    ),
    "Encoder layers, unlike linear ones, have no weight of their own to show": (
        "test_weight_bias_attributes|test_in_features_out_features|has no attribute 'weight'"
    ),
    "Prompts take part in attention from the first step, so the start is not the base model": "test_disable_adapters ",
    "Refused on purpose: an adapter named like a module, of which PEFT saves no tensor": "`adapter_name` must differ",
    "Refused on purpose: `get_peft_model` on a model that has adapters, where PEFT warns": "must be a base model",
    "An input prompt belongs to the model's input, not to encoder layers": (
        "an input prompt belongs to|input_prompt TestStatus|input_prompt .*'(ASTLayer|types.SimpleNamespace)' object has no"
    ),
    "A side network has an adapter layer more than PEFT's tests count: the one behind the last, which adds its result": (
        "side_network TestStatus [\\s\\S]*(Left contains one more item|At index 3 diff)"
    ),
    "PEFT warns of an adapter whose name is in the prefix: the test's name `adapter` is in most of ours": (
        "test_no_warning_without_naming_conflict"
    ),
    "Statistics of a Conformer's batch norm are buffers, which PEFT's `low_cpu_mem_usage` leaves on the CPU": (
        "conformer .*low_cpu_mem_usage"
    ),
}


def reason_of(line):
    """The reason for which this test cannot apply; None for a finding."""
    text = f"{line['method']} {line['suite']} {line['test']} {line['case']} {line['message']}"
    return next((reason for reason, pattern in CANNOT_APPLY.items() if re.search(pattern, text)), None)
