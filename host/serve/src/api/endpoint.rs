//! The endpoints that generate: which protocol each speaks, and whose errors it shows.
//!
//! **Invariant:** behind `parse` nobody asks by which protocol a request came.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, Uri};

use super::sampling::Rules;
use super::stream::Writer;
use super::{chat, completions, messages, responses};
use crate::app::App;
use crate::ctx::name_id;
use crate::request::{Refusal, Request};

/// Whose SDK reads an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

impl Vendor {
    /// Who asks for a path that may not exist: Anthropic's clients say it in a header.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let anthropic = headers.contains_key("anthropic-version") || uri.path().starts_with("/v1/messages");
        if anthropic { Self::Anthropic } else { Self::OpenAi }
    }
}

/// An endpoint that generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1/completions`.
    Completions,
}

impl Endpoint {
    /// Whose SDK asks.
    pub fn vendor(self) -> Vendor {
        match self {
            Self::Chat | Self::Completions | Self::Responses => Vendor::OpenAi,
            Self::Messages => Vendor::Anthropic,
        }
    }

    /// What is asked, checked, and who writes the answer.
    pub async fn parse(
        self,
        app: &Arc<App>,
        body: &Bytes,
        headers: &HeaderMap,
        tenant: &str,
    ) -> Result<(Request, Box<dyn Writer>), Refusal> {
        match self {
            Self::Chat => {
                let rules = Rules { tenant: name_id(tenant), ..super::rules(app) };
                let (request, style) = chat::parse(body, headers, &rules, app.ctx.seed())?;
                let writer = chat::Reply::new(app, &request, style);
                Ok((request, Box::new(writer)))
            }
            Self::Messages => {
                let (request, writer) = messages::parse(app, body, headers, tenant)?;
                Ok((request, Box::new(writer)))
            }
            Self::Responses => {
                let caller = responses::Caller { tenant, headers, latest: None, tell: None };
                let (request, writer) = responses::parse(app, body, caller).await?;
                Ok((request, Box::new(writer)))
            }
            Self::Completions => {
                let (request, style) = completions::parse(body, headers, &super::rules(app), app.ctx.seed())?;
                let writer = completions::Reply::new(app, &request, &style);
                Ok((request, Box::new(writer)))
            }
        }
    }
}
