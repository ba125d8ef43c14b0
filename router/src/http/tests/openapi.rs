//! The document says all that the server does, and the server does all that it says.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde::de::value::Error;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde_json::Value;

use super::harness::{Server, speak};
use crate::http::openai::OpenAiRequest;
use crate::http::wire::{CompatRequest, GenerateRequest};
use crate::validation::Parameters;

fn everything() -> Server {
    let environment = [("AIP_PREDICT_ROUTE", "/predict"), ("AIP_HEALTH_ROUTE", "/alive")];
    Server::with(&["--kserve", "--max-stop-sequences", "7"], &environment, speak)
}

async fn document(server: &Server) -> Value {
    let answer = server.get("/api-doc/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some("application/json")));
    answer.json()
}

/// Every object in it, with the key that leads there.
fn walk<'a>(value: &'a Value, visit: &mut impl FnMut(&'a serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            visit(object);
            object.values().for_each(|value| walk(value, visit));
        }
        Value::Array(items) => items.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

#[tokio::test]
async fn every_method_of_every_path_is_served_and_no_other() {
    let server = everything();
    let document = document(&server).await;
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 28, "{:?}", paths.keys());
    for (path, item) in paths {
        let url = path.replace("{name}", "test/model").replace("{model}", "m").replace("{version}", "1");
        for method in ["get", "post", "put", "delete", "patch"] {
            let as_http = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = Request::builder().method(as_http).uri(&url).body(Body::empty()).unwrap();
            let status = server.send(request).await.status;
            let Some(operation) = item.get(method) else {
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
                continue;
            };
            let documented = operation["responses"].get(status.as_str());
            assert!(documented.is_some(), "{method} {path} answers {status}, which is not documented");
        }
    }
}

#[tokio::test]
async fn where_a_key_is_asked_for_the_document_says_what_its_absence_brings() {
    let server = Server::with(&["--kserve", "--admin-routes"], &[("API_KEY", "secret")], speak);
    let document = document(&server).await;
    let mut guarded = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let url = path.replace("{name}", "test/model").replace("{model}", "m").replace("{version}", "1");
        for (method, operation) in item.as_object().unwrap() {
            let as_http = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = Request::builder().method(as_http).uri(&url).body(Body::empty()).unwrap();
            let status = server.send(request).await.status;
            let asks = operation["security"] == serde_json::json!([{}, { "api_key": [] }]);
            assert_eq!(asks, status == StatusCode::UNAUTHORIZED, "{method} {path} answers {status}");
            assert!(operation["responses"].get(status.as_str()).is_some(), "{method} {path} answers {status}");
            if asks {
                guarded.insert(path.as_str());
            }
        }
    }
    assert!(guarded.contains("/generate") && guarded.contains("/admin/drain"), "{guarded:?}");
    assert!(document["paths"]["/admin/drain"]["post"]["responses"].get("403").is_some());
}

#[tokio::test]
async fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document(&everything()).await;
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut used = BTreeSet::new();
    walk(&document, &mut |object| {
        if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
            used.insert(reference.strip_prefix("#/components/schemas/").unwrap().to_owned());
        }
    });
    let known: BTreeSet<String> = schemas.keys().cloned().collect();
    // Events in the middle of a stream have no place in a document of whole answers.
    let without_a_place = BTreeSet::from(["StreamError".to_owned()]);
    assert_eq!(used.union(&without_a_place).cloned().collect::<BTreeSet<_>>(), known);
}

#[tokio::test]
async fn operations_have_names_of_their_own_and_groups_that_exist() {
    let document = document(&everything()).await;
    let groups: Vec<&Value> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    let (mut names, mut used) = (BTreeSet::new(), BTreeSet::new());
    for operation in document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values())
    {
        assert!(names.insert(operation["operationId"].to_string()), "{operation}");
        assert!(groups.contains(&&operation["tags"][0]), "{operation}");
        assert!(!operation["summary"].as_str().unwrap().is_empty());
        used.insert(operation["tags"][0].to_string());
    }
    assert_eq!(used.len(), groups.len());
}

/// The names of the fields that `T` reads.
fn fields<'de, T: Deserialize<'de>>() -> BTreeSet<&'static str> {
    struct Asked<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            *self.0 = fields;
            Err(Error::custom("asked"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("no struct"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut found: &'static [&'static str] = &[];
    assert!(T::deserialize(Asked(&mut found)).is_err());
    found.iter().copied().collect()
}

#[tokio::test]
async fn each_field_that_is_read_is_described_and_no_other() {
    let document = document(&everything()).await;
    let described = |name: &str| -> BTreeSet<&str> {
        let schema = &document["components"]["schemas"][name];
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect()
    };
    assert_eq!(described("GenerateRequest"), fields::<GenerateRequest>());
    assert_eq!(described("CompatRequest"), fields::<CompatRequest>());
    assert_eq!(described("GenerateParameters"), fields::<Parameters>());
    let (chat, completions) = (described("ChatRequest"), described("CompletionRequest"));
    assert_eq!(chat.union(&completions).copied().collect::<BTreeSet<_>>(), fields::<OpenAiRequest>());
    assert!(chat.contains("messages") && !chat.contains("prompt"));
    assert!(completions.contains("prompt") && !completions.contains("messages"));
    for name in ["GenerateParameters", "ChatRequest", "CompletionRequest"] {
        for (field, property) in document["components"]["schemas"][name]["properties"].as_object().unwrap() {
            let says = property["description"].as_str().unwrap_or_default();
            assert!(says.len() > 10, "{name}.{field} is not described: {property}");
            assert!(["type", "anyOf", "oneOf", "$ref"].iter().any(|key| property.get(key).is_some()), "{name}.{field}");
        }
    }
}

#[tokio::test]
async fn the_limits_are_the_operators() {
    let document = document(&everything()).await;
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["GenerateParameters"]["properties"]["stop"]["maxItems"], 7);
    assert_eq!(schemas["ChatRequest"]["properties"]["stop"]["anyOf"][1]["maxItems"], 7);
    let max_new_tokens = &schemas["GenerateParameters"]["properties"]["max_new_tokens"];
    assert_eq!((&max_new_tokens["minimum"], &max_new_tokens["type"][0]), (&Value::from(1), &Value::from("integer")));
}

#[tokio::test]
async fn the_page_comes_with_all_its_parts_and_finds_the_document() {
    let server = Server::start();
    let answer = server.get("/docs").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, Some("/docs/")));
    let page = server.get("/docs/").await;
    assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, Some("text/html")));
    for part in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-initializer.js"] {
        assert!(page.body.contains(part), "{part}");
        assert_eq!(server.get(&format!("/docs/{part}")).await.status, StatusCode::OK);
    }
    let script = server.get("/docs/swagger-initializer.js").await;
    assert!(script.body.contains("../api-doc/openapi.json"), "{}", script.body);
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "nothing comes from elsewhere");
}

#[tokio::test]
async fn neither_document_nor_page_asks_for_the_key() {
    let server = Server::with(&[], &[("API_KEY", "secret")], speak);
    for path in ["/api-doc/openapi.json", "/docs/"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK);
    }
}
