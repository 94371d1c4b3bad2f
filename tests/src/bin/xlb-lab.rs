//! The servers of the lab, each a process of its own so that it can be killed.
//!
//! ```text
//! xlb-lab http|udp NAME ADDRESS:PORT
//! ```

use anyhow::bail;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, name, listen] = arguments.as_slice() else {
        bail!("usage: xlb-lab http|udp NAME ADDRESS:PORT");
    };
    let listen = listen.parse()?;
    match kind.as_str() {
        "http" => lb_tests::serve::http(listen, name).await,
        "udp" => lb_tests::serve::udp(listen, name).await,
        _ => bail!("no server of the kind {kind}"),
    }
}
