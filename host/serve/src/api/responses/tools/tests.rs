use super::*;

fn tools(list: Value) -> Tools {
    let mut tools = Tools::default();
    tools.add(list.as_array().expect("a list"), "tools").expect("the tools are right");
    tools
}

fn codex() -> Tools {
    tools(json!([
        {"type": "function", "name": "shell", "description": "Runs.", "strict": false, "parameters": {"type": "object"}},
        {"type": "namespace", "name": "agents", "description": "Others.", "tools": [
            {"type": "function", "name": "spawn", "description": "Starts one.", "parameters": {"type": "object"}},
            {"type": "function", "name": "wait"},
        ]},
        {"type": "custom", "name": "apply_patch", "description": "Edits.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"a\""}},
        {"type": "web_search", "external_web_access": true},
    ]))
}

fn names(tools: &Tools) -> Vec<&str> {
    tools.chat.iter().filter_map(|tool| tool["function"]["name"].as_str()).collect()
}

#[test]
fn tools_become_functions_with_one_name_each() {
    let tools = codex();
    assert_eq!(names(&tools), ["shell", "agents__spawn", "agents__wait", "apply_patch"]);
    assert_eq!(tools.chat[1]["function"]["description"], "Others.\n\nStarts one.");
    assert_eq!(tools.chat[2]["function"].get("description"), None);
    let patch = &tools.chat[3]["function"];
    assert_eq!(patch["description"], "Edits.\n\n`input` is text of this lark grammar:\nstart: \"a\"");
    assert_eq!(patch["parameters"]["required"], json!(["input"]));
}

#[test]
fn the_response_repeats_what_can_be_called_with_the_keys_that_validators_want() {
    let tools = codex();
    assert_eq!(tools.echo.len(), 3, "hosted tools are not here");
    let bare = super::tests::tools(json!([{"type": "function", "name": "f"}]));
    let expected =
        json!({"type": "function", "name": "f", "description": null, "parameters": null, "strict": false});
    assert_eq!(bare.echo, [expected]);
}

#[test]
fn a_call_is_told_by_its_callers_names() {
    let tools = codex();
    let check = |written: &str, name: &str, namespace: Option<&str>, custom: bool| {
        let expected = Callable { name: name.into(), namespace: namespace.map(str::to_owned), custom };
        assert_eq!(tools.called(written), expected);
    };
    check("shell", "shell", None, false);
    check("agents__spawn", "spawn", Some("agents"), false);
    check("spawn", "spawn", Some("agents"), false);
    check("apply_patch", "apply_patch", None, true);
    check("unknown", "unknown", None, false);
    check("other__spawn", "other__spawn", None, false);
}

#[test]
fn free_text_goes_into_arguments_and_out_of_them() {
    assert_eq!(custom_arguments("a \"b\"\n"), r#"{"input": "a \"b\"\n"}"#);
    assert_eq!(custom_input(&custom_arguments("*** Begin Patch\n+ä")), "*** Begin Patch\n+ä");
    assert_eq!(custom_input("no JSON"), "no JSON");
    assert_eq!(custom_input(r#"{"patch": 1}"#), r#"{"patch": 1}"#);
}

fn choose(choice: Value) -> Result<(ToolChoice, Vec<String>), String> {
    let mut tools = codex();
    let body = json!({ "tool_choice": choice });
    let fields = Fields::body(&body).expect("an object");
    let chosen = tools.choose(&fields).map_err(|e| e.to_string())?;
    Ok((chosen, names(&tools).into_iter().map(str::to_owned).collect()))
}

#[test]
fn a_choice_names_the_tool_as_the_model_does() {
    let named = |choice| choose(choice).map(|(chosen, _)| chosen);
    assert_eq!(named(json!(null)), Ok(ToolChoice::Auto));
    assert_eq!(named(json!("none")), Ok(ToolChoice::None));
    assert_eq!(named(json!("required")), Ok(ToolChoice::Required));
    let spawn = Ok(ToolChoice::Named("agents__spawn".into()));
    assert_eq!(named(json!({"type": "function", "name": "spawn", "namespace": "agents"})), spawn);
    assert_eq!(named(json!({"type": "function", "name": "agents__spawn"})), spawn);
    assert_eq!(
        named(json!({"type": "custom", "name": "apply_patch"})),
        Ok(ToolChoice::Named("apply_patch".into()))
    );
    let unknown = named(json!({"type": "function", "name": "f"})).expect_err("there is no such tool");
    assert!(unknown.contains("`f`, which is not in `tools` (shell, agents__spawn"), "{unknown}");
    let hosted = named(json!({"type": "web_search"})).expect_err("it cannot be called");
    assert!(hosted.starts_with("`tool_choice.type` must be"), "{hosted}");
    assert!(named(json!("any")).expect_err("no such word").starts_with("`tool_choice` must be"));
}

#[test]
fn allowed_tools_are_those_that_are_left() {
    let allowed =
        |mode: &str, tools: Value| choose(json!({"type": "allowed_tools", "mode": mode, "tools": tools}));
    let one = allowed("required", json!([{"type": "function", "name": "shell"}, {"type": "web_search"}]));
    assert_eq!(one, Ok((ToolChoice::Required, vec!["shell".to_owned()])));
    let (auto, left) =
        allowed("auto", json!([{"type": "namespace", "name": "agents"}])).expect("it is right");
    assert_eq!((auto, left.len()), (ToolChoice::Auto, 2));
    assert_eq!(allowed("auto", json!([])), Ok((ToolChoice::None, vec![])));
    assert!(allowed("required", json!([])).is_err());
}

#[test]
fn a_tool_that_is_wrong_is_named() {
    let refuse = |list: Value| {
        let mut tools = Tools::default();
        tools.add(list.as_array().expect("a list"), "tools").expect_err("it is wrong").to_string()
    };
    assert_eq!(
        refuse(json!([{"type": "function"}])),
        "`tools[0].name` is missing: it must be the name of a tool"
    );
    assert_eq!(
        refuse(json!([{"type": "namespace", "name": "n", "tools": [{"name": "f", "parameters": 3}]}])),
        "`tools[0].tools[0].parameters` must be an object, got a number"
    );
    assert_eq!(refuse(json!([7])), "`tools[0]` must be an object, got a number");
}
