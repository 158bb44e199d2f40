//! The way out for package installations: pods of the test cluster reach nothing but this machine,
//! so here is an HTTP CONNECT proxy, as companies have one.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
};

/// Serves on an address of this machine until the process ends; gives its URL.
pub fn start(address: &str) -> String {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that breaks off is its own business.
            thread::spawn(move || drop(serve(client)));
        }
    });
    url
}

fn serve(client: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut client = client;
    let Some(target) = request.strip_prefix("CONNECT ").and_then(|r| r.split(' ').next()) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    let server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || {
        let copied = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Write);
        copied
    });
    let mut to_server = server;
    std::io::copy(&mut reader, &mut to_server)?;
    to_server.shutdown(std::net::Shutdown::Write)?;
    let _ = back.join();
    Ok(())
}
