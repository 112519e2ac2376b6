//! How each family spells the elements of [`super::xml`].

use super::schema::Types;
use super::xml::Dialect;

pub(super) const QWEN: Dialect = Dialect {
    call: "<function=",
    parameter: "<parameter=",
    value: &[],
    end: "</function>",
    between: &["<function=", "</function>", "</tool_call>"],
    after_name: &[">"],
    elements: &["<parameter=", "</function>", "</tool_call>"],
    after_key: &[">"],
    close: &["</parameter>"],
    newlines: true,
    unknown: Types::TEXT,
    json: Some(&["</tool_call>"]),
};

pub(super) const MINIMAX: Dialect = Dialect {
    call: "<invoke name=",
    parameter: "<parameter name=",
    value: &[],
    end: "</invoke>",
    between: &["<invoke name=", "</invoke>", "</minimax:tool_call>"],
    after_name: &[">"],
    elements: &["<parameter name=", "</invoke>", "</minimax:tool_call>"],
    after_key: &[">"],
    close: &["</parameter>"],
    newlines: false,
    unknown: Types::TEXT,
    json: None,
};

pub(super) const DSML: Dialect = Dialect {
    call: "<｜DSML｜invoke name=\"",
    parameter: "<｜DSML｜parameter name=\"",
    value: &[],
    end: "</｜DSML｜invoke>",
    between: &[
        "<｜DSML｜invoke name=\"",
        "</｜DSML｜invoke>",
        "</｜DSML｜function_calls>",
        "</｜DSML｜tool_calls>",
    ],
    after_name: &["\">"],
    elements: &[
        "<｜DSML｜parameter name=\"",
        "</｜DSML｜invoke>",
        "</｜DSML｜function_calls>",
        "</｜DSML｜tool_calls>",
    ],
    after_key: &["\" string=\"true\">", "\" string=\"false\">", "\">"],
    close: &["</｜DSML｜parameter>"],
    newlines: false,
    unknown: Types::ANY,
    json: None,
};

pub(super) const GLM: Dialect = Dialect {
    call: "",
    parameter: "<arg_key>",
    value: &["<arg_value>"],
    end: "</tool_call>",
    between: &[],
    after_name: &["<arg_key>", "</tool_call>"],
    elements: &["<arg_key>", "</tool_call>"],
    after_key: &["</arg_key>"],
    close: &["</arg_value>"],
    newlines: false,
    unknown: Types::ANY,
    json: None,
};
