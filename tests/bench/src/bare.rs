//! A server that does nothing: what it costs with the same libraries, on a machine as busy as it is, to read a call and
//! to write an answer of a stream's size.

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;

/// First argument of the child process.
pub(crate) const CHILD: &str = "bare-server";
/// Chosen: about what a streamed token takes.
const EVENT_BYTES: usize = 200;
/// Events of an answer.
const EVENTS: usize = 16;

/// What the child runs.
pub(crate) fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let event = format!("data: {:EVENT_BYTES$}\n\n", "");
        let answer: Bytes = (event.repeat(EVENTS) + "data: [DONE]\n\n").into();
        let take = move |_: Bytes| async move { ([(CONTENT_TYPE, "text/event-stream")], chunked(answer)) };
        let calls =
            Router::new().route("/v1/chat/completions", post(take)).layer(DefaultBodyLimit::disable());
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("api http://{0}\nadmin http://{0}", socket.local_addr()?);
        Ok(axum::serve(socket, calls).await?)
    })
}

/// A body whose length is not known before it ends, as a stream's is not.
fn chunked(answer: Bytes) -> axum::body::Body {
    axum::body::Body::from_stream(futures_util::stream::iter([Ok::<_, std::convert::Infallible>(answer)]))
}
