//! The web server of the lab, a process of its own so that it can be killed: `xlb-lab NAME ADDRESS:PORT`.

use anyhow::bail;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, listen] = arguments.as_slice() else {
        bail!("usage: xlb-lab NAME ADDRESS:PORT");
    };
    lb_tests::serve::http(listen.parse()?, name).await
}
